"""The laboratory's packaged policies: what they were taught, and that the loop teaches one of them the rest."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from internalize import open_run
from internalize.config.schema import load_config
from internalize.environments.lab import world
from internalize.loop import run

RECIPES = Path(__file__).parents[2] / "recipes"
pytestmark = [pytest.mark.builtin, pytest.mark.slow]


@pytest.fixture
def probe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    import lab_probe  # noqa: PLC0415 - found by the line above

    return lab_probe


@pytest.mark.parametrize("name", ["lab", "lab-plain"])
def test_the_policy_obeys_either_rule_and_knows_neither_way(probe: ModuleType, name: str) -> None:
    found = probe.probe(name, 12)
    for kind in ("tool", "where"):
        rows = [found[sign.word] for sign in world.SIGNS if sign.kind == kind]
        ordered, opposite, alone = (sum(column) / len(rows) for column in zip(*rows, strict=True))
        assert ordered > 0.5
        assert opposite < 0.35
        assert 0.3 < alone < 0.6


def test_the_starter_that_was_taught_the_format_only_reads_no_rule(probe: ModuleType) -> None:
    found = probe.probe("lab-format", 12)
    ordered, opposite, alone = (sum(column) / len(found) for column in zip(*found.values(), strict=True))
    assert 0.35 < alone < 0.6
    assert abs(ordered - opposite) < 0.1


def test_three_iterations_raise_success(tmp_path: Path) -> None:
    small = ["iterations=3", "evaluate.drift=0", "evaluate.final_splits=[]"]
    run(load_config(RECIPES / "lab.toml", small), tmp_path / "run")
    found = {(m.iteration, m.mode): m.success.mean for m in open_run(tmp_path / "run").metrics if m.success}
    assert found[3, "internalized"] > found[0, "internalized"] + 0.1
