"""Sizes and signatures that a linter does not check: small functions, small files, full return types."""

import ast
import statistics
from pathlib import Path

import pytest

import internalize
from benchmarks.structure import FILE_LINES, FUNCTION_LINES, Source, figures, length, percentile_90, read, table

ROOT = Path(internalize.__file__).parent
MODULES = read(ROOT)


@pytest.mark.parametrize("source", MODULES.values(), ids=["/".join(name) for name in MODULES])
def test_file(source: Source) -> None:
    assert source.lines <= (120 if source.path == ROOT / "loop.py" else FILE_LINES)
    assert ast.get_docstring(source.tree), "needs a docstring that says what the module is for"
    stars = [n for n in ast.walk(source.tree) if isinstance(n, ast.ImportFrom) and n.names[0].name == "*"]
    assert not stars
    assert not [one.name for one in source.functions if one.returns is None], "no return type"
    assert not [one.name for one in source.functions if length(one) > FUNCTION_LINES], "too long"


def test_functions_are_small() -> None:
    lengths = [length(function) for source in MODULES.values() for function in source.functions]
    assert statistics.median(lengths) <= 12
    assert percentile_90(lengths) <= 40


def test_the_table_of_the_structure(tmp_path: Path) -> None:
    """A package with a cycle, a private function and an untyped one, beside this one."""
    package = tmp_path / "small"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import a\n")
    (package / "inner" / "a.py").write_text("import small.inner.b\n\ndef _f():\n    return 1\n")
    (package / "inner" / "b.py").write_text("def g() -> int:\n    from ..inner.a import _f\n    return _f()\n")
    (package / "inner" / "__init__.py").write_text("")
    small = figures(package)
    assert set(small["import cycle"].split(" > ")) == {"inner/a", "inner/b"}
    assert small["functions without a return type"] == "1"
    assert small["private functions"] == "50%, median 2 lines"
    assert small["inner/"] == "7 lines, 3 modules"
    here = figures(ROOT)
    assert here["import cycle"] == "none"
    lines = list(table({"small": small, "here": here}))
    assert len(lines) == 1 + len({*small, *here})
