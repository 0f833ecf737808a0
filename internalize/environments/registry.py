"""Environments by name: the built-in ones, and those that other packages announce.

A plug-in is a class with the methods of `interfaces.Environment`, announced in its package's metadata under the entry
point group `internalize.environments`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any, NamedTuple

from internalize.config.schema import EnvConfig
from internalize.errors import InternalizeError, TaskError, UserError, did_you_mean, first_line
from internalize.experience.cues import GENERIC
from internalize.interfaces import CueExtractor, Environment

from .docs.cues import CUES as OF_DOCS

GROUP = "internalize.environments"


class Builtin(NamedTuple):
    """The place of a built-in environment, one line about it, and the extra with the packages that it `needs`."""

    module: str  # a leading dot: in this package
    attribute: str
    about: str
    extra: str = ""
    needs: tuple[str, ...] = ()
    last_python: tuple[int, int] = (3, 99)  # later ones are refused by its packages

    @property
    def missing(self) -> str:
        """The extra to install, or ''."""
        return "" if all(find_spec(package) for package in self.needs) else self.extra

    @property
    def remedy(self) -> str:
        """What helps against `missing`."""
        if sys.version_info[:2] > self.last_python:
            return (
                f"Python {self.last_python[0]}.{self.last_python[1]} or older, later ones are refused by its packages"
            )
        return f"an extra: pip install 'internalize[{self.extra}]'"


_GAMES = ("textworld_express", "scienceworld", "py4j")
BUILTIN = {
    "docs": Builtin(".docs.env", "Docs", "questions over the documentation of packages or a folder of yours"),
    "lab": Builtin(".lab.env", "Lab", "a small closed world of which it is known what has to be learned"),
    "maths": Builtin(
        ".maths.env", "Maths", "exact problems, generated or yours, with a Python tool", "maths", ("sympy",)
    ),
    "web": Builtin(".web.env", "Web", "questions over the web or a folder: search, visit, Python", "web", ("httpx",)),
    "mcp": Builtin(".mcp.env", "Mcp", "your tasks with the tools of a Model Context Protocol server", "mcp", ("mcp",)),
    "agent": Builtin(
        ".agent.env",
        "AgentTasks",
        "your own agent on your tasks",
        "serve",
        ("openai", "anthropic", "starlette", "uvicorn"),
    ),
    "tau2": Builtin(".tau2.env", "Tau2", "tickets of tau2-bench telecom, solved alone", "tau2", ("inspect_evals",)),
    "textworld_express": Builtin(
        ".text_games.textworld_express", "TextWorldExpress", "eight short text games", "textgames", _GAMES
    ),
    "scienceworld": Builtin(
        ".text_games.scienceworld", "ScienceWorld", "30 kinds of experiments in a text world", "textgames", _GAMES
    ),
}


# Sources of many environments; the text after the colon of a name is the first argument.
ADAPTERS = {
    "gymnasium": Builtin(
        ".adapters.gymnasium", "Gymnasium", "environments of gymnasium in text", "gymnasium", ("gymnasium",)
    ),
    "inspect": Builtin(".adapters.inspect_ai", "InspectTask", "tasks of inspect_ai", "inspect", ("inspect_ai",)),
    "openenv": Builtin(
        ".adapters.openenv", "OpenEnv", "the environment behind a server of OpenEnv", "openenv", ("websockets", "httpx")
    ),
    "textarena": Builtin(
        ".adapters.textarena", "TextArena", "single-player games of TextArena", "textarena", ("textarena",)
    ),
    "verifiers": Builtin(
        ".adapters.verifiers",
        "Verifiers",
        "environments of the library verifiers",
        "verifiers",
        ("verifiers", "openai", "anthropic", "starlette", "uvicorn"),
        last_python=(3, 13),
    ),
}


def names() -> tuple[str, ...]:
    """Every name that `make` knows, except those with a colon."""
    return tuple(sorted({*BUILTIN, *(point.name for point in entry_points(group=GROUP))}))


def listing() -> tuple[tuple[str, str], ...]:
    """Each name with one line about it and the extra that is missing, if any."""
    lines = {point.name: f"plug-in {point.value}" for point in entry_points(group=GROUP)}
    for name, known in (*BUILTIN.items(), *((f"{source}:NAME", known) for source, known in ADAPTERS.items())):
        lines[name] = known.about + (f" (needs {known.remedy})" if known.missing else "")
    return tuple(sorted(lines.items()))


def make(name: str, options: Mapping[str, Any] | None = None) -> Environment:
    """Build an environment by its name in recipes, with the keyword options of its class.

    Raises TaskError for an unknown name, an unknown or invalid option, or a plug-in that cannot be loaded, UserError
    for an extra that is not installed.
    """
    factory = _factory(name)
    try:
        environment: Environment = factory(**options or {})
    except InternalizeError:
        raise
    except TypeError as error:
        raise TaskError(f"env.options of {name}: {error}") from error
    except Exception as error:  # a plug-in may raise anything
        raise TaskError(f"env.options of {name}: {type(error).__name__}: {first_line(error)}") from error
    return environment


def cues(name: str) -> tuple[CueExtractor, ...]:
    """The cue extractors of an environment: those of its class, or the generic ones.

    An environment that is not installed here, such as that of an imported log, has the generic ones. Raises TaskError
    for a plug-in that cannot be loaded.
    """
    if name not in names() or (name in BUILTIN and BUILTIN[name].missing):
        return GENERIC
    offered: tuple[CueExtractor, ...] = getattr(_factory(name), "cues", GENERIC)
    return offered


def vocabulary(name: str) -> tuple[CueExtractor, ...]:
    """What a pool's rules may name: `cues`, and those of `docs`, which every environment had once."""
    own = cues(name)
    texts = {(of.cue, of.state, of.value) for of in own}
    return (*own, *(of for of in OF_DOCS if (of.cue, of.state, of.value) not in texts))


def _factory(name: str) -> Any:
    source, colon, inner = name.partition(":")
    if colon and source in ADAPTERS:
        return partial(_builtin(source, ADAPTERS[source]), inner)
    return _builtin(name, BUILTIN[name]) if name in BUILTIN else _plugin(name)


def _builtin(name: str, known: Builtin) -> Any:
    if known.missing:
        raise UserError(f"the environment {name!r} needs {known.remedy}")
    return getattr(import_module(known.module, __package__), known.attribute)


def _plugin(name: str) -> Any:
    points = [point for point in entry_points(group=GROUP) if point.name == name]
    if not points:
        there_are = f"there are {', '.join(names())}{did_you_mean(name, names())}"
        raise TaskError(f"env.name = {name!r}: no such environment ({there_are})")
    try:
        return points[0].load()
    except Exception as error:  # importing may raise anything
        problem = f"the plug-in {points[0].value} cannot be loaded ({first_line(error)})"
        raise TaskError(f"env.name = {name!r}: {problem}") from error


class Environments:
    """Makes each environment once for its name and options, because some are slow to build."""

    def __init__(self) -> None:
        self._made: dict[str, Environment] = {}

    def __call__(self, config: EnvConfig) -> Environment:
        """The environment. Raises as `make` does."""
        key = config.model_dump_json()
        if key not in self._made:
            self._made[key] = make(config.name, config.options)
        return self._made[key]

    def close(self) -> None:
        """End the processes of every environment that was made."""
        for environment in self._made.values():
            getattr(environment, "close", lambda: None)()
        self._made.clear()
