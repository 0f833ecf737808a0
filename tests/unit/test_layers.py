"""A module imports only from the rows above its own in the table of AGENTS.md."""

import ast
import graphlib
import re
from pathlib import Path

import pytest

import internalize

ROOT = Path(internalize.__file__).parent
ROW = re.compile(r"^\| (`[^|]+) \|", re.MULTILINE)
NAMES = re.compile(r"`(\w+)(?:/|\.py)`")


def ranks() -> dict[str, int]:
    """The rank of every top-level module and folder, from the table of AGENTS.md."""
    rows = ROW.findall((ROOT.parent / "AGENTS.md").read_text(encoding="utf-8"))
    return {name: rank for rank, row in enumerate(rows) for name in NAMES.findall(row)}


RANKS = ranks()
MODULES = {path.relative_to(ROOT).with_suffix("").parts: path for path in sorted(ROOT.rglob("*.py"))}


def imported(module: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Modules of this package that `module` imports anywhere, inside functions too."""
    found: set[tuple[str, ...]] = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {resolve(tuple(name.name.split(".")[1:])) for name in node.names if is_ours(name.name)}
        elif isinstance(node, ast.ImportFrom) and (node.level or is_ours(node.module or "")):
            base = module[: len(module) - node.level] if node.level else ()
            parts = (node.module or "").split(".") if node.module else []
            start = (*base, *(parts if node.level else parts[1:]))
            found |= {resolve((*start, name.name)) for name in node.names}
    return found - {module}


def is_ours(name: str) -> bool:
    return name.partition(".")[0] == "internalize"


def resolve(parts: tuple[str, ...]) -> tuple[str, ...]:
    """The module that a dotted name lies in."""
    while parts and parts not in MODULES and (*parts, "__init__") not in MODULES:
        parts = parts[:-1]
    return parts if parts in MODULES else (*parts, "__init__")


@pytest.mark.parametrize("module", MODULES, ids="/".join)
def test_imports_go_down(module: tuple[str, ...]) -> None:
    assert module[0] in RANKS, f"give {module[0]} a row in the table of AGENTS.md"
    for other in imported(module):
        allowed = other[0] == module[0] or RANKS.get(other[0], len(RANKS)) < RANKS[module[0]]
        assert allowed, f"{'/'.join(module)} may not import {'/'.join(other)}"


def test_there_is_no_import_cycle() -> None:
    graphlib.TopologicalSorter({module: imported(module) for module in MODULES}).prepare()


def test_the_table_names_what_is_there() -> None:
    there = {module[0] for module in MODULES}
    assert RANKS.keys() <= there, "a row of AGENTS.md names a module that is not there"
