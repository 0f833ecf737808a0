"""A candidate that lost: rolled back, trained again with a smaller step, or averaged with its parent."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.evaluation.gate import Decision
from internalize.records import Checkpoint, EvalResult
from internalize.report.run_report import load as load_report
from internalize.runs.store import read_jsonl
from internalize.stages import promote as promotion
from internalize.stages.backends import in_process
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_model, tiny_tokenizer

SET = [
    "iterations=2", "env.name=toy", "rollout.tasks=3", "rollout.attempts=1", "rollout.max_steps=2",
    "rollout.max_action_tokens=6", "distill.tasks=2", "distill.epochs=1", "distill.lora_r=2", "distill.filter=none",
    "distill.divergence=sft", "evaluate.tasks=3", "evaluate.final_splits=[]", "compute.batch=3",
]  # fmt: skip
LOST = Decision(promote=False, reason="worse", interval=None)
WON = Decision(promote=True, reason="no worse", interval=None)


def policy(config: Config) -> LocalPolicy:
    return LocalPolicy(config, tiny_model(), tiny_tokenizer())


class Verdicts:
    """Says of each candidate what the script says; `asked` counts them."""

    def __init__(self, *script: Decision) -> None:
        self.script, self.asked = list(script), 0

    def __call__(self, *_: object) -> Decision:
        self.asked += 1
        return self.script.pop(0)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))


def run(out: Path, monkeypatch: pytest.MonkeyPatch, rule: str, *script: Decision) -> Verdicts:
    verdicts = Verdicts(*script)
    monkeypatch.setattr(promotion, "decide", verdicts)
    loop.run(
        load_config(None, [*SET, f"gate.rule={rule}"]),
        out,
        resume=True,
        backends=lambda config, made: in_process(policy(config), made),
    )
    return verdicts


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def decision(out: Path, k: int) -> Decision:
    return Decision.model_validate_json((out / f"iter-{k}" / "gate.json").read_bytes())


@pytest.mark.parametrize("rule", ["retry", "average"])
def test_a_milder_candidate_that_holds_takes_the_place_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    run(tmp_path, monkeypatch, rule, LOST, WON, WON)
    said = {"rival": 0}  # the starter: nothing else was kept yet
    assert decision(tmp_path, 1) == WON.model_copy(update={"first": LOST.model_copy(update=said), **said})
    record = Checkpoint.model_validate_json((tmp_path / "iter-1" / "checkpoint.json").read_bytes())
    assert record.path == "iter-1/second"
    results = read_jsonl(tmp_path / "iter-1" / "evaluations.jsonl", EvalResult)
    assert {r.checkpoint for r in results if r.iteration == 1} == {record.id}
    first = read_jsonl(tmp_path / "iter-1" / "evaluations-first.jsonl", EvalResult)
    assert record.id not in {r.checkpoint for r in first}
    second = Checkpoint.model_validate_json((tmp_path / "iter-2" / "checkpoint.json").read_bytes())
    assert second.parent == record.id  # the next iteration starts from it
    final = load_report(tmp_path).final
    assert final is not None
    assert final.number == 2


def test_the_average_lies_half_way_to_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, "average", LOST, WON, WON)
    first, second = (weights(tmp_path / "iter-1" / name) for name in ("checkpoint", "second"))
    for name, weight in first.items():
        if "lora_B" in name:  # zero in the starter
            torch.testing.assert_close(second[name], weight / 2)


def test_a_smaller_step_moves_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, monkeypatch, "retry", LOST, WON, WON)
    sizes = [
        sum(float(weight.norm()) for name, weight in weights(tmp_path / "iter-1" / folder).items() if "lora_B" in name)
        for folder in ("checkpoint", "second")
    ]
    assert 0 < sizes[1] < 0.5 * sizes[0]


def test_two_candidates_that_lost_leave_the_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = run(tmp_path, monkeypatch, "retry", LOST, LOST, LOST, LOST)
    assert verdicts.asked == 4
    assert not decision(tmp_path, 2).promote
    report = load_report(tmp_path)
    assert report.final is None


def test_killed_within_the_second_candidate_the_run_finds_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    run(alone, monkeypatch, "retry", LOST, WON, WON)
    with pytest.raises(IndexError):  # the script ends where the second candidate is to be judged
        run(killed, monkeypatch, "retry", LOST)
    run(killed, monkeypatch, "retry", WON, WON)
    for k in (1, 2):
        assert decision(killed, k) == decision(alone, k)
        names = ["evaluations.jsonl", "teacher.jsonl"]
        assert all(
            [timeless(r) for r in (alone / f"iter-{k}" / name).read_text().splitlines()]
            == [timeless(r) for r in (killed / f"iter-{k}" / name).read_text().splitlines()]
            for name in names
        )


def timeless(line: str) -> str:
    return re.sub(r'"seconds": ?[0-9.e-]+', "", line)
