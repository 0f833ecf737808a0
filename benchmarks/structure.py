"""How large and how tangled the package is: files, functions, cycles, folders.

    python -m benchmarks.structure [PATH...]    one column a path (a checkout or a package); default: this checkout

The tests of style and of layers use the functions of this file, so that a limit and its figure cannot differ.
"""

from __future__ import annotations

import ast
import graphlib
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Module = tuple[str, ...]  # the parts of its path below the package, without the suffix

FILE_LINES, FUNCTION_LINES, TOP_LEVEL = 400, 80, 18  # the limits


class Source(NamedTuple):
    """A file of a package."""

    path: Path
    lines: int
    tree: ast.Module

    @property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]


def read(package: Path) -> dict[Module, Source]:
    """Every module of the package in the folder `package`, without the examples that `internalize init` writes."""
    found = {}
    for path in sorted(set(package.rglob("*.py")) - set(package.glob("cli/init/**/*.py"))):
        text = path.read_text(encoding="utf-8")
        found[path.relative_to(package).with_suffix("").parts] = Source(path, text.count("\n"), ast.parse(text))
    return found


def length(function: Function) -> int:
    """The lines of a function without its decorators."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def is_private(function: Function) -> bool:
    return function.name.startswith("_") and not function.name.endswith("__")


def imported(module: Module, modules: Mapping[Module, Source], package: str = "internalize") -> set[Module]:
    """Modules of the package that `module` imports anywhere, inside functions too."""
    names: list[Module] = []
    for node in ast.walk(modules[module].tree):
        if isinstance(node, ast.Import):
            names += [tuple(name.name.split(".")) for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = (package, *module[: len(module) - node.level]) if node.level else ()
            start = (*base, *(node.module.split(".") if node.module else ()))
            names += [(*start, name.name) for name in node.names]
    return {_module_of(name[1:], modules) for name in names if name[0] == package} - {module}


def _module_of(parts: Module, modules: Mapping[Module, Source]) -> Module:
    """The module that a dotted name lies in."""
    while parts and parts not in modules and (*parts, "__init__") not in modules:
        parts = parts[:-1]
    return parts if parts in modules else (*parts, "__init__")


def import_cycle(modules: Mapping[Module, Source], package: str = "internalize") -> list[Module]:
    """The modules of an import cycle, or []."""
    try:
        graphlib.TopologicalSorter({name: imported(name, modules, package) for name in modules}).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def percentile_90(lengths: Sequence[int]) -> int:
    return sorted(lengths)[int(0.9 * len(lengths))]


def figures(package: Path) -> dict[str, str]:
    """Every row of the table for one package."""
    modules = read(package)
    functions = [function for source in modules.values() for function in source.functions]
    lengths, private = [length(one) for one in functions], [length(one) for one in functions if is_private(one)]
    folders = [entry for entry in package.iterdir() if entry.is_dir() and entry.name != "__pycache__"]
    top = [*folders, *package.glob("*.py")]
    rooms = Counter("/".join(name[:-1]) for name in modules if len(name) > 1)
    lines: Counter[str] = Counter()
    for name, source in modules.items():
        lines["/".join(name[:1]) if len(name) > 1 else ""] += source.lines
    largest = max(modules, key=lambda name: modules[name].lines)
    found: dict[str, object] = {
        "modules": len(modules),
        "lines": f"{sum(lines.values()):,}",
        "longest module": f"{'/'.join(largest)}, {modules[largest].lines}",
        f"modules over {FILE_LINES} lines": sum(source.lines > FILE_LINES for source in modules.values()),
        "functions": len(functions),
        "private functions": f"{len(private) / len(functions):.0%}, median {statistics.median(private):g} lines",
        "function median / p90 / max": f"{statistics.median(lengths):g} / {percentile_90(lengths)} / {max(lengths)}",
        f"functions over {FUNCTION_LINES} lines": sum(one > FUNCTION_LINES for one in lengths),
        "functions without a return type": sum(one.returns is None for one in functions),
        "import cycle": " > ".join("/".join(name) for name in import_cycle(modules, package.name)) or "none",
        f"top-level modules and folders (at most {TOP_LEVEL})": len(top),
        "modules a folder, median / max": f"{statistics.median(rooms.values()):g} / {max(rooms.values())}",
    }
    for folder in sorted(lines, key=lambda folder: -lines[folder]):
        inside = [room for room in rooms if room.split("/")[0] == folder]
        count = sum(rooms[room] for room in inside) if folder else sum(len(name) == 1 for name in modules)
        found[f"{folder or '(top level)'}/"] = f"{lines[folder]:,} lines, {count} modules"
    return {name: str(value) for name, value in found.items()}


def table(columns: Mapping[str, Mapping[str, str]]) -> Iterable[str]:
    """Lines of a table, a column for each package."""
    rows = dict.fromkeys(name for column in columns.values() for name in column)
    cells = [["", *columns], *([name, *(column.get(name, "-") for column in columns.values())] for name in rows)]
    widths = [max(map(len, column)) for column in zip_longest(*cells, fillvalue="")]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def main(paths: Sequence[str]) -> None:
    """Print the table."""
    packages = {}
    for text in paths or [str(Path(__file__).parent.parent)]:
        path = Path(text).resolve()
        packages[text] = path / "internalize" if (path / "internalize").is_dir() else path
    for line in table({text: figures(package) for text, package in packages.items()}):
        print(line)


if __name__ == "__main__":
    main(sys.argv[1:])
