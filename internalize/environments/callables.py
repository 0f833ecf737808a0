"""Functions of the user, named in a recipe as 'module:function' or 'file.py:function'."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from internalize.errors import UserError, first_line


def load_function(name: str, key: str) -> Callable[..., Any]:
    """The function of this name; `key` is the recipe key with the name. Raises UserError if it cannot be loaded."""
    module, colon, function = name.rpartition(":")
    try:
        loaded = getattr(_module(module), function, None) if colon else None
    except Exception as error:  # the file is executed and may raise anything
        problem = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{key} = {name!r} cannot be loaded ({problem})") from error
    if not callable(loaded):
        raise UserError(f"{key} = {name!r} is no 'module:function' or 'file.py:function'")
    found: Callable[..., Any] = loaded
    return found


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        return importlib.import_module(name)
    file = Path(name).expanduser().resolve()
    if str(file.parent) not in sys.path:  # as with `python FILE`, so that it can import the modules beside it
        sys.path.append(str(file.parent))
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
