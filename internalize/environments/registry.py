"""Environments by name: the built-in ones and those that packages announce under the entry point group.

A plug-in is a class with the methods of `records.Environment`, announced in its package's metadata under
`internalize.environments`. Left out: what an environment's options mean (its constructor says).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from internalize.errors import TaskError
from internalize.records import Environment

GROUP = "internalize.environments"
BUILTIN = {"docs": ("internalize.environments.docs", "Docs")}


def names() -> tuple[str, ...]:
    """Every name that `make` knows."""
    return tuple(sorted({*BUILTIN, *(point.name for point in entry_points(group=GROUP))}))


def make(name: str, options: Mapping[str, Any]) -> Environment:
    """Build an environment. Raises TaskError for an unknown name or an option it does not have."""
    if name in BUILTIN:
        module, attribute = BUILTIN[name]
        factory = getattr(import_module(module), attribute)
    else:
        found = [point for point in entry_points(group=GROUP) if point.name == name]
        if not found:
            raise TaskError(f"env.name = {name!r}: no such environment (there are {', '.join(names())})")
        factory = found[0].load()
    try:
        environment: Environment = factory(**options)
    except TypeError as error:
        raise TaskError(f"env.options of {name}: {error}") from error
    return environment
