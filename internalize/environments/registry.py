"""Environments by name: the built-in ones and those that packages announce under the entry point group.

A plug-in is a class with the methods of `interfaces.Environment`, announced in its package's metadata under
`internalize.environments`. Left out: what an environment's options mean (its constructor says).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, NamedTuple, get_type_hints

from pydantic import TypeAdapter, ValidationError

from internalize.config.schema import EnvConfig
from internalize.errors import InternalizeError, TaskError, UserError, first_line
from internalize.interfaces import Environment

GROUP = "internalize.environments"


class Builtin(NamedTuple):
    """Where a built-in environment is, one line about it, and the extra that brings the packages it `needs`."""

    module: str
    attribute: str
    about: str
    extra: str = ""
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> str:
        """The extra to install, or ''."""
        return "" if all(find_spec(package) for package in self.needs) else self.extra


_HERE = "internalize.environments"
_GAMES = ("textworld_express", "scienceworld", "py4j")
BUILTIN = {
    "docs": Builtin(f"{_HERE}.docs.env", "Docs", "questions over the documentation of packages or a folder of yours"),
    "maths": Builtin(
        f"{_HERE}.maths.env",
        "Maths",
        "exact problems, generated or yours, with a Python tool",
        "maths",
        ("sympy",),
    ),
    "web": Builtin(
        f"{_HERE}.web.env", "Web", "questions over the web or a folder: search, visit, Python", "web", ("httpx",)
    ),
    "mcp": Builtin(
        f"{_HERE}.mcp.env", "Mcp", "your tasks with the tools of a Model Context Protocol server", "mcp", ("mcp",)
    ),
    "tau2": Builtin(
        f"{_HERE}.tau2.env", "Tau2", "tickets of tau2-bench telecom, solved alone", "tau2", ("inspect_evals",)
    ),
    "textworld_express": Builtin(
        f"{_HERE}.text_games.textworld_express", "TextWorldExpress", "eight short text games", "textgames", _GAMES
    ),
    "scienceworld": Builtin(
        f"{_HERE}.text_games.scienceworld",
        "ScienceWorld",
        "30 kinds of experiments in a text world",
        "textgames",
        _GAMES,
    ),
}


def names() -> tuple[str, ...]:
    """Every name that `make` knows."""
    return tuple(sorted({*BUILTIN, *(point.name for point in entry_points(group=GROUP))}))


def listing() -> tuple[tuple[str, str], ...]:
    """Each name with one line about it, which says what is missing."""
    lines = {point.name: f"plug-in {point.value}" for point in entry_points(group=GROUP)}
    for name, known in BUILTIN.items():
        lines[name] = known.about + (f" (missing: {_install(known.missing)})" if known.missing else "")
    return tuple(sorted(lines.items()))


def make(name: str, options: Mapping[str, Any] | None = None) -> Environment:
    """Build an environment by its name in recipes, with the keyword options of its class.

    Raises TaskError for an unknown name, options that it does not have or cannot take, or a plug-in that cannot be
    loaded, UserError for an extra that is not installed.
    """
    options = options or {}
    factory = _builtin(name, options) if name in BUILTIN else _plugin(name)
    try:
        environment: Environment = factory(**options)
    except InternalizeError:
        raise
    except TypeError as error:
        raise TaskError(f"env.options of {name}: {error}") from error
    except Exception as error:  # the classes of other packages cannot be named here
        raise TaskError(f"env.options of {name}: {type(error).__name__}: {first_line(error)}") from error
    return environment


def _builtin(name: str, options: Mapping[str, Any]) -> Any:
    known = BUILTIN[name]
    if known.missing:
        raise UserError(f"the environment {name!r} needs an extra: {_install(known.missing)}")
    factory = getattr(import_module(known.module), known.attribute)
    _check_types(name, get_type_hints(factory.__init__), options)
    return factory


def _check_types(name: str, types: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Raises TaskError for an option whose value is not of the type that the constructor names."""
    for option in options.keys() & types.keys():
        try:
            TypeAdapter(types[option]).validate_python(options[option], strict=True)
        except ValidationError as error:
            found = [one["msg"] for one in error.errors(include_url=False) if one["type"] != "literal_error"]
            if found:  # choices are named by the environment itself
                said = f"{option} = {options[option]!r}: {found[0][:1].lower()}{found[0][1:]}"
                raise TaskError(f"env.options of {name}: {said}") from error


def _plugin(name: str) -> Any:
    found = [point for point in entry_points(group=GROUP) if point.name == name]
    if not found:
        raise TaskError(f"env.name = {name!r}: no such environment (there are {', '.join(names())})")
    try:
        return found[0].load()
    except Exception as error:  # importing it runs it, which may raise anything
        said = f"the plug-in {found[0].value} cannot be loaded ({first_line(error)})"
        raise TaskError(f"env.name = {name!r}: {said}") from error


def _install(extra: str) -> str:
    return f"pip install 'internalize[{extra}]'"


class Environments:
    """Environments by name and options, each made once: some are slow to build."""

    def __init__(self) -> None:
        self._made: dict[str, Environment] = {}

    def __call__(self, config: EnvConfig) -> Environment:
        """Raises what `make` raises."""
        key = config.model_dump_json()
        if key not in self._made:
            self._made[key] = make(config.name, config.options)
        return self._made[key]
