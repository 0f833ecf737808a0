"""Baselines in the loop's own harness: nothing is trained, and everything is measured all the same."""

from pathlib import Path

import pytest

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.report.run_report import load
from internalize.stages.backends import in_process
from internalize.training.distill import distill
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trajectories import random_example

SET = [
    "iterations=2", "env.name=toy", "rollout.tasks=3", "rollout.attempts=2", "rollout.max_steps=2",
    "rollout.max_action_tokens=6", "distill.tasks=2", "distill.epochs=0", "distill.lora_r=2", "distill.replay=1.0",
    "evaluate.tasks=3", "evaluate.final_splits=[]", "compute.batch=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))


def tiny(config: Config) -> LocalPolicy:
    return LocalPolicy(config, tiny_model(), tiny_tokenizer())


def play(out: Path, *more: str) -> None:
    loop.run(
        load_config(None, [*SET, *more]), out, resume=True, backends=lambda config, made: in_process(tiny(config), made)
    )


@pytest.mark.parametrize("more", [(), ("distill.generator=student", "distill.refresh=1")], ids=["once", "rounds"])
def test_without_epochs_every_iteration_is_measured_and_the_weights_stay(tmp_path: Path, more: tuple[str, ...]) -> None:
    out = tmp_path / "run"
    play(out, *more)
    report = load(out)
    assert report.finished == 2
    assert len({i.internalized.checkpoint for i in report.iterations if i.internalized}) == 1
    for iteration in report.iterations[1:]:
        assert iteration.in_context is not None
        assert iteration.pool is not None
        assert iteration.training is not None
        assert (iteration.training.accepted, iteration.training.rejected) == (0, 0)
    assert not [*out.glob("iter-*/teacher*.jsonl")]
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.jsonl")}
    play(out, *more)  # a resume finds nothing to do
    assert {p: t for p, t in before.items() if p.name != "metrics.jsonl"} == {
        p: p.stat().st_mtime_ns for p in before if p.name != "metrics.jsonl"
    }


def test_the_stage_by_itself_trains_nothing_either(tmp_path: Path) -> None:
    settings = load_config(None, SET).distill
    model = tiny_model()
    summary = distill(model, [random_example(0)], settings, seed=0, output_dir=tmp_path)
    assert (summary.steps, summary.accepted) == (0, 0)
