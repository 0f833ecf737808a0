"""Every algorithm and switch in a real iteration of the toy environment: it lowers what it says."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from internalize.config.algorithms import ALGORITHMS
from internalize.config.schema import load_config
from internalize.environments import registry
from internalize.errors import DataError, UserError
from internalize.records import DistillExample, TrainSummary, Trajectory
from internalize.report.export import find
from internalize.report.model_card import card
from internalize.report.run_report import training_of
from internalize.runs.store import read_jsonl
from internalize.stages.learn import distill
from internalize.stages.run import silent
from internalize.stages.standalone import Inputs, distill_file
from tests.fluent import fluent_policy, iterate, odd_pool, open_run

CHANGES = {
    "off_policy": ["distill.filter=none"],  # the pool's item makes the teacher fail
    "on_policy": [],
    "sdft": ["distill.epochs=1", "distill.teacher.decay=0.8"],
    "opsd": ["distill.epochs=1"],
    "gkd": ["distill.epochs=1"],
    "rft": ["distill.attempts=8", "distill.lr=5e-3"],
}


def test_a_policy_gradient_is_trained_on_successes_and_failures(tmp_path: Path) -> None:
    record = iterate(tmp_path / "run", "distill.algorithm=grpo")
    weights = [e.weight for e in read_jsonl(tmp_path / "run" / "iter-1" / "train.jsonl", DistillExample)]
    assert min(weights) < 0 < max(weights)
    assert sum(weights) == pytest.approx(0, abs=1e-6)  # every attempt at a task is kept, and its advantages cancel
    assert record.steps


@pytest.mark.parametrize("algorithm", [name for name in ALGORITHMS if name != "grpo"])
def test_every_algorithm_lowers_its_divergence_on_held_out_states(algorithm: str, tmp_path: Path) -> None:
    record = iterate(tmp_path / "run", f"distill.algorithm={algorithm}", "distill.lr=2e-2", *CHANGES.get(algorithm, ()))
    assert record.held_out >= 2
    assert record.held_out_before is not None
    assert record.held_out_after is not None
    if algorithm == "rft":  # no teacher: -log q of held-out successes, which are this policy's own samples already
        assert record.divergence_after < record.divergence_before
        assert record.held_out_after < 1.1 * record.held_out_before
    else:
        assert record.held_out_after < 0.8 * record.held_out_before


def test_rounds_play_with_the_weights_of_the_round_before(tmp_path: Path) -> None:
    iterate(
        tmp_path / "run", "distill.preset=opsd", "distill.epochs=1", "distill.generator.refresh=3", "distill.lr=1e-2"
    )
    folder = tmp_path / "run" / "iter-1"
    played = [read_jsonl(folder / name, Trajectory) for name in ("teacher.jsonl", "teacher-1.jsonl")]
    assert [len(round_) for round_ in played] == [12, 12]
    assert not {t.task_id for t in played[0]} & {t.task_id for t in played[1]}
    assert len({t.checkpoint for t in played[0] + played[1]}) == 2
    assert len(read_jsonl(folder / "train.jsonl", DistillExample)) == 22  # two are held out


def test_examples_of_earlier_iterations_come_again(tmp_path: Path) -> None:
    changes = ["distill.filter=none", "distill.replay=0.5", "distill.epochs=1", "iterations=2"]
    run = open_run(tmp_path / "run", *changes)
    starter = run.backends.starter
    first = asyncio.run(run.collect(starter, odd_pool(), 1))
    trained = asyncio.run(distill(run, starter, odd_pool(), first, 1))
    folder = run.store.iteration(2)
    (folder / "pool.json").write_bytes((run.store.iteration(1) / "pool.json").read_bytes())
    asyncio.run(distill(run, trained, odd_pool(), first[:12], 2))
    record = TrainSummary.model_validate_json((folder / "train.json").read_bytes())
    assert record.accepted == 12
    assert len(read_jsonl(folder / "train.jsonl", DistillExample)) == 12  # its own: what is replayed is not passed on
    assert record.steps == 5  # 12 and 6 of before, in batches of 4


def test_own_rollouts_are_trained_on_in_turn_with_what_the_teacher_played(tmp_path: Path) -> None:
    changes = ("distill.own=true", "distill.filter=none", "rollout.tasks=12", "distill.tasks=12")
    run = open_run(tmp_path / "run", *changes, "distill.most=10")
    examples = asyncio.run(run.collect(run.backends.starter, odd_pool(), 1))
    folder = run.store.iteration(1)
    shown, plain = (
        {t.id: t.pattern for t in read_jsonl(folder / name, Trajectory)} for name in ("teacher.jsonl", "rollouts.jsonl")
    )
    assert (set(shown.values()), set(plain.values())) == ({"stepwise"}, {"none"})
    assert [e.trajectory_id in shown for e in examples] == [True, False] * 5
    # The item says "When you see a box": a teacher reads it at the first step of either kind.
    assert all(e.spans[0].branch for e in examples)
    assert run.rejected == 12 + 24 - 10  # rollouts are played twice each


def test_a_run_may_train_on_its_own_rollouts_alone(tmp_path: Path) -> None:
    changes = ("distill.own=true", "distill.tasks=0", "distill.divergence=sft", "rollout.tasks=12", "distill.epochs=1")
    record = iterate(tmp_path / "run", *changes)
    folder = tmp_path / "run" / "iter-1"
    assert read_jsonl(folder / "teacher.jsonl", Trajectory) == []
    solved = [t.id for t in read_jsonl(folder / "rollouts.jsonl", Trajectory) if t.score == 1.0]
    assert [e.trajectory_id for e in read_jsonl(folder / "train.jsonl", DistillExample)] == solved
    assert record.accepted == len(solved) > 0


def _recipe(folder: Path) -> Path:
    (folder / "recipe.toml").write_text("seed = 0\n")
    return folder / "recipe.toml"


@pytest.fixture
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
    monkeypatch.setattr("internalize.stages.standalone._policy", lambda config, _checkpoint: fluent_policy(config))


@pytest.mark.usefixtures("_toy")
def test_a_file_of_trajectories_can_be_distilled_on_policy_with_a_pool_but_not_refreshed(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", "distill.algorithm=on_policy")
    asyncio.run(run.collect(run.backends.starter, odd_pool(), 1))
    file, pool = (tmp_path / "run" / "iter-1" / name for name in ("teacher.jsonl", "pool.json"))
    summary = distill_file(run.config, file, tmp_path / "weights", Inputs(pool), silent)
    assert summary.held_out_after < summary.held_out_before
    found = find(tmp_path / "weights", _recipe(tmp_path))
    text = card(found.config, "c", "adapter", lineage=found.lineage, alone=training_of(tmp_path / "weights"))
    assert f"Trajectories of teacher.jsonl: {summary.accepted} trained on" in text
    assert f"{summary.held_out_before:.3f} to {summary.held_out_after:.3f} nats" in text
    assert f"| 1 | `{found.lineage[0].id}` |" in text
    short = run.config.model_copy(update={"model": run.config.model.model_copy(update={"max_context": 64})})
    with pytest.raises(DataError, match=r"trajectories are longer than model\.max_context = 64 tokens"):
        distill_file(short, file, tmp_path / "short", Inputs(pool), silent)
    with pytest.raises(UserError, match="no experience was injected"):
        distill_file(run.config, file, tmp_path / "other", Inputs(), silent)
    refreshing = load_config(None, ["distill.algorithm=sdft"])
    with pytest.raises(UserError, match=r"distill\.generator\.refresh = 4 rolls out anew"):
        distill_file(refreshing, file, tmp_path / "other", Inputs(pool), silent)
