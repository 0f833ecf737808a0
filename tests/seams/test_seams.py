"""A loop over a second engine, scorer, rollout backend or train backend leaves what a loop over the first ones leaves.

Each of the second ones is one file here, and no other file knows of them: what is needed to play an episode or to
train crosses the seams of `internalize/interfaces.py` as records and paths.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.records import Checkpoint, Trajectory
from internalize.runs import names
from internalize.runs.store import read_jsonl
from internalize.stages.backends import in_process
from internalize.stages.run import Backends
from internalize.training.policy import LocalPolicy, LocalTraining
from internalize.training.scoring import PACKED
from tests.fluent import save_fluent

from .plain_engine import PlainEngine
from .step_scorer import StepScorer
from .subprocess_training import SubprocessTraining
from .worker_rollouts import WorkerRollouts

SET = [
    "iterations=1", "env.name=toy", "rollout.tasks=4", "rollout.max_steps=3", "rollout.max_action_tokens=12",
    "distill.tasks=4", "distill.epochs=1", "distill.lora_r=2", "distill.filter=none", "distill.divergence=sft",
    "distill.lr=5e-3", "evaluate.tasks=3", "evaluate.final_splits=[]", "evaluate.drift=0", "compute.batch=4",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _toy() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(None, [*SET, f"model.source={save_fluent(tmp_path_factory.mktemp('model'))}"])


def run(config: Config, out: Path, backends: Callable[[Backends], Backends], engine: object = None) -> Path:
    policy = LocalPolicy.of(config, engine=engine) if engine else LocalPolicy.of(config)
    loop.run(config, out, backends=lambda _, environments: backends(in_process(policy, environments)))
    return out


@pytest.fixture(scope="module")
def first(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the backends of this process leave."""
    return run(config, tmp_path_factory.mktemp("first") / "run", lambda made: made)


def episodes(out: Path) -> list[Trajectory]:
    stages = [(k, s) for k, folder in names.iterations(out, 1).items() for s in
              [*names.learning(folder, k), *names.measuring(folder, k, ["dev"])]]  # fmt: skip
    return [t for k, stage in stages for t in read_jsonl(out / f"iter-{k}" / names.episodes(stage), Trajectory)]


def trained(out: Path) -> Checkpoint:
    return Checkpoint.model_validate_json((out / names.iteration(1) / names.CHECKPOINT).read_bytes())


def require_equal(out: Path, first: Path) -> None:
    """The same episodes up to float rounding of log-probabilities, and the same weights."""
    found, wanted = episodes(out), episodes(first)
    assert len(found) == len(wanted) > 10
    assert [[s.token_ids for s in t.steps] for t in found] == [[s.token_ids for s in t.steps] for t in wanted]
    for one, other in zip(found, wanted, strict=True):
        for step, same in zip(one.steps, other.steps, strict=True):
            assert step.logprobs == pytest.approx(same.logprobs, abs=1e-4)
    timeless = [t.model_copy(update={"steps": ()}) for t in wanted]
    assert [t.model_copy(update={"steps": ()}) for t in found] == timeless
    assert trained(out) == trained(first)


def test_the_first_loop_plays_and_learns(first: Path, config: Config) -> None:
    assert any(t.score for t in episodes(first))
    assert trained(first).id != LocalPolicy.of(config).starter.id


@pytest.mark.slow
def test_a_second_engine_gives_the_same_run(config: Config, first: Path, tmp_path: Path) -> None:
    made = []

    def engine(model: object, renderer: object, config: Config) -> PlainEngine:
        made.append(PlainEngine(model, renderer, config))
        return made[-1]

    require_equal(run(config, tmp_path / "run", lambda backends: backends, engine), first)
    assert made[-1].passes > 100, "the one that was made after the self-check acts"


@pytest.mark.slow
def test_a_second_scorer_gives_the_same_run(config: Config, tmp_path: Path) -> None:
    """A teacher that scores with experience and one that moves, the measurement of drift, the student."""
    source = f"model.source={config.model.source}"
    changed = load_config(None, [*SET, source, "distill.divergence=forward", "distill.teacher=ema", "evaluate.drift=3"])
    outs, stepped = [tmp_path / "packed", tmp_path / "stepped"], StepScorer()
    for out, scorer in zip(outs, (PACKED, stepped), strict=True):
        policy = LocalPolicy.of(changed, scorer=scorer)
        loop.run(changed, out, backends=lambda _, environments, policy=policy: in_process(policy, environments))
    assert stepped.passes > 30
    found, wanted = ([[s.token_ids for s in t.steps] for t in episodes(out)] for out in outs)
    assert found == wanted
    one, other = (load_file(trained(out).folder(out) / "adapter_model.safetensors") for out in outs)
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-3, rtol=1e-2)


@pytest.mark.slow
def test_episodes_played_by_worker_processes_are_the_same(config: Config, first: Path, tmp_path: Path) -> None:
    workers = WorkerRollouts(2)
    try:
        out = run(config, tmp_path / "run", lambda made: dataclasses.replace(made, rollouts=workers))
    finally:
        workers.close()
    require_equal(out, first)


@pytest.mark.slow
def test_weights_trained_in_a_process_of_its_own_are_the_same(config: Config, first: Path, tmp_path: Path) -> None:
    training = SubprocessTraining(config)
    out = run(config, tmp_path / "run", lambda made: dataclasses.replace(made, trainer=training))
    require_equal(out, first)
    given = (trained(out), out, episodes(out)[:2])
    local = LocalTraining(LocalPolicy.of(config))
    assert asyncio.run(training.drift(*given)) == asyncio.run(local.drift(*given))


@pytest.mark.parametrize("name", ["plain_engine", "step_scorer", "worker_rollouts", "subprocess_training"])
def test_each_is_one_short_file(name: str) -> None:
    assert len((Path(__file__).parent / f"{name}.py").read_text().splitlines()) < 60
