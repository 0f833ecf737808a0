"""A short part of `python -m benchmarks.integrity`: the real command line, killed at random and on damaged files."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.integrity import bench, damage, kills
from internalize.environments import registry


@pytest.mark.slow
def test_a_run_that_is_killed_or_damaged_is_never_silently_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
    work = bench(tmp_path)
    killed = kills(work, "gate", most=2, seed=1)
    assert killed.wrong == []
    assert killed.counts["kills"] >= 2
    damaged = damage(work, "gate", every=61)
    assert damaged.wrong == []
    assert damaged.counts["refused by name"] > 0
