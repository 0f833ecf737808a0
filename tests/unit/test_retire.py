"""Retiring items in a run: from training episodes alone, and for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="the stages import the learning half")

from internalize.config.schema import load_config
from internalize.experience.pool import ExperiencePool, save_pool
from internalize.records import PoolEdit, Trajectory
from internalize.runs.store import RunStore, read_jsonl, write_jsonl
from internalize.stages.plan import TaskPlan
from internalize.stages.run import Run
from internalize.stages.scripted import scripted_backends
from tests.toy import Toy
from tests.unit.test_utility import NOTE, RULE, episode

HARM = [episode(f"t{i}", 0.0, NOTE) for i in range(20)] + [episode(f"t{i}", 1.0) for i in range(20)]
HELP = [episode(f"t{i}", 1.0, NOTE) for i in range(20)] + [episode(f"t{i}", 0.0) for i in range(20)]


def a_run(path: Path, training: list[Trajectory], measured: list[Trajectory], *overrides: str) -> Run:
    """A run after one iteration: `training` in its training files, `measured` in those of its evaluation."""
    config = load_config(None, ["env.name=toy", *overrides])
    store = RunStore.create(path, config)
    folder = store.iteration(1)
    save_pool(ExperiencePool((NOTE, RULE), 50), folder / "pool.json")
    write_jsonl(folder / "edits.jsonl", [PoolEdit(op="ADD", item=NOTE), PoolEdit(op="ADD", item=RULE)])
    write_jsonl(folder / "teacher.jsonl", [t for t in training if t.pattern != "none"])
    write_jsonl(folder / "rollouts.jsonl", [t for t in training if t.pattern == "none"])
    write_jsonl(folder / "episodes-dev-in-context-1.jsonl", [t for t in measured if t.pattern != "none"])
    write_jsonl(folder / "episodes-dev-internalized-1.jsonl", [t for t in measured if t.pattern == "none"])
    return Run(config, store, scripted_backends(Toy()), TaskPlan(Toy(), {}, []))


def test_what_harms_in_training_is_retired_and_the_log_rebuilds_the_pool(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", HARM, HELP, "extract.retire=true", "extract.window=1")
    after = asyncio.run(run.extract(run.backends.starter, [], 2))
    assert after.items == (RULE,)
    (edit,) = read_jsonl(tmp_path / "run" / "iter-2" / "edits.jsonl", PoolEdit)
    assert (edit.op, edit.targets) == ("DELETE", (NOTE.id,))
    assert edit.cause == "retired"
    assert edit.reason.startswith("retired: success 0% on 20 tasks with it, 100% on 20 without, -100 points")
    assert run.pool(1).apply([edit]) == after
    write_jsonl(tmp_path / "run" / "iter-2" / "rollouts.jsonl", [])
    _, barred = run._retired(3, after)
    assert barred == {NOTE.id}, "it stays barred when its evidence has left the window"


def test_evaluation_episodes_retire_nothing(tmp_path: Path) -> None:
    """Invariant 12: what the suites show never reaches extraction."""
    run = a_run(tmp_path / "run", HELP, HARM, "extract.retire=true")
    assert asyncio.run(run.extract(run.backends.starter, [], 2)).items == (NOTE, RULE)


def test_off_by_default(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", HARM, HARM)
    assert asyncio.run(run.extract(run.backends.starter, [], 2)).items == (NOTE, RULE)
