"""Invariant 11: the same seed and config give the same trajectories, pool, weights and metrics."""

from pathlib import Path

import pytest

from tests.command import contents
from tests.lookers import run

SMALL = "rollout.tasks=16", "evaluate.tasks=4", "evaluate.final_tasks=2", "distill.tasks=8"


@pytest.mark.slow  # two runs of the loop, after the training of the weights they start from
def test_two_runs_leave_the_same_records_and_another_seed_leaves_others(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        run(tmp_path / name, *SMALL, f"seed={seed}")
    one, again, other = (contents(tmp_path / name) for name in ("one", "again", "other"))
    assert {"iter-1/rollouts.jsonl", "iter-1/pool.json", "iter-1/teacher.jsonl", "metrics.jsonl"} <= one.keys()
    assert any(name.endswith(".safetensors") for name in one)
    assert one == again
    assert one != other
