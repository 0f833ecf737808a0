"""The public door: every name is there, typed and documented, and the door opens without torch."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import internalize

SOURCE = ast.parse(Path(internalize.__file__).read_text(encoding="utf-8"))


def typed_names() -> dict[str, str]:
    """Every name that type checkers see, and the module that it is imported from."""
    (block,) = (node for node in SOURCE.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    return {name.asname or name.name: f"internalize.{node.module}" for node in imports for name in node.names}


def test_what_type_checkers_see_is_what_there_is() -> None:
    assert sorted(typed_names()) == sorted(internalize.__all__)
    homes = {name: f"internalize.{home}" for name, home in internalize._HOME.items()}
    assert homes == typed_names()
    assert dir(internalize) == sorted([*internalize.__all__, "__version__"])


@pytest.mark.parametrize("name", sorted(internalize.__all__))
def test_every_name_has_a_docstring_and_types(name: str) -> None:
    value = getattr(internalize, name)
    assert inspect.getdoc(value)
    if inspect.isfunction(value):
        signature = inspect.signature(value)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())
    else:
        assert inspect.isclass(value)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        internalize.nothing_of_the_kind  # noqa: B018


def test_the_import_is_quick_and_pulls_in_nothing_but_the_standard_library() -> None:
    code = (
        "import sys, time; before = time.process_time(); import internalize; took = time.process_time() - before; "
        "print(took, *sorted(n for n in sys.modules if n.split('.')[0] in ('torch', 'pydantic', 'numpy')"
        " or n.startswith('internalize.')))"
    )
    took, *modules = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert modules == []
    assert float(took) < 0.2


@pytest.mark.parametrize("name", ["load_config", "open_run", "make_environment", "Engine", "Trajectory"])
def test_what_needs_no_model_needs_no_torch(name: str) -> None:
    code = f"import sys, internalize; internalize.{name}; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["False"]
