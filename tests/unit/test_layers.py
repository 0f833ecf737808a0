"""A module imports only lower layers (the table of the design, a row split where it builds on itself)."""

import ast
import graphlib
from pathlib import Path

import pytest

import internalize

ROOT = Path(internalize.__file__).parent
LAYERS = (
    ("records", "errors", "regimes", "schema", "usage"),
    ("protocols", "overrides"),
    ("config", "store", "render", "rules", "cache", "console", "asking", "stats"),
    ("engines", "starter", "redact", "judge"),
    ("environments", "pool", "formats", "selectors"),
    ("extract", "inject", "distill", "checkpoint"),
    ("actor",),
    ("rollout", "endpoints"),
    ("metrics", "habits"),
    ("diagnostics", "gate", "utility"),
    ("lint",),
    ("policy", "rounds"),
    ("stages", "report"),
    ("promotion",),
    ("loop", "single", "export", "study"),
    ("cli_export", "cli_study", "cli_pool", "cli_logs", "cli_judge", "cli_endpoints"),
    ("cli", "__init__", "__main__"),
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
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
    assert module[0] in RANKS, f"give {module[0]} a layer in LAYERS"
    for other in imported(module):
        allowed = other[0] == module[0] or RANKS.get(other[0], len(LAYERS)) < RANKS[module[0]]
        assert allowed, f"{'/'.join(module)} may not import {'/'.join(other)}"


def test_there_is_no_import_cycle() -> None:
    graphlib.TopologicalSorter({module: imported(module) for module in MODULES}).prepare()
