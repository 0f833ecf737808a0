"""A module imports only from the rows above its own in the table of AGENTS.md."""

import re
from pathlib import Path

import pytest

import internalize
from benchmarks.structure import Module, import_cycle, imported, read

ROOT = Path(internalize.__file__).parent
ROW = re.compile(r"^\| (`[^|]+) \|", re.MULTILINE)
NAMES = re.compile(r"`(\w+)(?:/|\.py)`")


def ranks() -> dict[str, int]:
    """The rank of every top-level module and folder, from the table of AGENTS.md."""
    rows = ROW.findall((ROOT.parent / "AGENTS.md").read_text(encoding="utf-8"))
    return {name: rank for rank, row in enumerate(rows) for name in NAMES.findall(row)}


RANKS = ranks()
MODULES = read(ROOT)


@pytest.mark.parametrize("module", MODULES, ids="/".join)
def test_imports_go_down(module: Module) -> None:
    assert module[0] in RANKS, f"give {module[0]} a row in the table of AGENTS.md"
    for other in imported(module, MODULES):
        allowed = other[0] == module[0] or RANKS.get(other[0], len(RANKS)) < RANKS[module[0]]
        assert allowed, f"{'/'.join(module)} may not import {'/'.join(other)}"


def test_there_is_no_import_cycle() -> None:
    assert import_cycle(MODULES) == []


def test_the_table_names_what_is_there() -> None:
    there = {module[0] for module in MODULES}
    assert RANKS.keys() <= there, "a row of AGENTS.md names a module that is not there"
