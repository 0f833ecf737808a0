"""A process that is killed with SIGKILL while it trains: the run gone on with ends where an undisturbed one does."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from internalize.training.checkpoint import checkpoint_id
from tests.fluent import iterate


def _die(out: Path, changes: list[str], call: int) -> None:
    calls = 0

    def count(stage: str, done: int, total: int) -> None:
        nonlocal calls
        calls += "distil" in stage and done > 0
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)

    iterate(out, *changes, at=count)


@pytest.mark.parametrize(
    ("regime", "dies"),
    [
        (["distill.filter=none", "distill.epochs=2"], [3, 6]),  # in the first epoch, in the second
        (["distill.preset=sdft", "distill.epochs=1", "distill.refresh=2", "distill.lora_r=0"], [1, 3, 3]),
        (["distill.preset=sdft", "distill.epochs=1", "distill.refresh=2"], [4]),  # from a state within the second round
    ],
)  # fmt: skip
def test_killed_in_training_and_resumed_it_ends_with_the_same_weights(
    regime: list[str], dies: list[int], tmp_path: Path
) -> None:
    changes = [*regime, "distill.save_steps=1", "distill.lr=1e-3"]
    expected = iterate(tmp_path / "undisturbed", *changes)
    context = multiprocessing.get_context("fork")
    for call in dies:
        child = context.Process(target=_die, args=(tmp_path / "run", changes, call))
        child.start()
        child.join(120)
        assert child.exitcode == -signal.SIGKILL
    steps: list[int] = []
    found = iterate(
        tmp_path / "run", *changes, at=lambda stage, done, _: steps.append(done) if "distil" in stage and done else None
    )
    assert steps[0] > 1 or len(steps) < expected.steps  # it did not begin again
    weights = [checkpoint_id(tmp_path / name / "iter-1" / "checkpoint") for name in ("undisturbed", "run")]
    assert weights[0] == weights[1]
    assert found.model_copy(update={"seconds": 0.0}) == expected.model_copy(update={"seconds": 0.0})
    names = [sorted(p.name for p in (tmp_path / n / "iter-1").iterdir()) for n in ("undisturbed", "run")]
    assert names[0] == names[1]
    assert not any("states" in name or name.endswith(".pt") for name in names[0])
