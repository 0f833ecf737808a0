"""Sizes and signatures that a linter does not check: small functions, small files, full return types."""

import ast
import statistics
from pathlib import Path

import pytest

import internalize

FILES = sorted(Path(internalize.__file__).parent.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(path: Path) -> list[Function]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert len(text.splitlines()) <= (120 if path.name == "loop.py" else 400)
    assert ast.get_docstring(tree), "says what it is, what it leaves out, what must not change"
    stars = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert not stars
    assert not [f.name for f in functions(path) if f.returns is None], "no return type"
    assert not [f.name for f in functions(path) if length(f) > 80], "too long"


def test_functions_are_small() -> None:
    lengths = sorted(length(function) for path in FILES for function in functions(path))
    assert statistics.median(lengths) <= 12
    assert lengths[int(0.9 * len(lengths))] <= 40
