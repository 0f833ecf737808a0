"""The final value of a key: `--set section.key=value` outranks the recipe, which outranks a named algorithm."""

from __future__ import annotations

import tomllib
from typing import Any, get_args

from pydantic import BaseModel

from internalize.errors import ConfigError
from internalize.records import is_deep

from .algorithms import ALGORITHMS
from .compute import MOVED as MOVED_TO_COMPUTE
from .regime import Divergence, Generator, Teacher

TABLES = {"generator": (Generator, "teacher"), "divergence": (Divergence, "forward"), "teacher": (Teacher, "frozen")}
# Keys of the old flat layout of [distill]: table and key of now, and the value allowed under any kind. None: any value,
# because kinds without the key ignored it.
MOVED: dict[str, tuple[str, str, Any]] = {
    "alpha": ("divergence", "alpha", None),
    "support": ("divergence", "support", "full"),
    "top_k": ("divergence", "top_k", None),
    "ema": ("teacher", "decay", None),
    "teacher_source": ("teacher", "source", ""),
    "refresh": ("generator", "refresh", 0),
}


def parse_toml(text: str) -> dict[str, Any]:
    """TOML as values. Raises ValueError, also for numbers too long or tables nested too deeply for Python."""
    try:
        found = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if is_deep(found):
        raise ValueError("nested too deeply")
    return found


def filled_in(section: dict[str, Any]) -> dict[str, Any]:
    """[distill] with its algorithm's values, every table with its kind, and flat keys in their tables."""
    values = {"algorithm" if key == "preset" else key: value for key, value in section.items()}
    algorithm = ALGORITHMS.get(str(values.get("algorithm")))
    named = algorithm.switches() if algorithm else {}
    found = named | values
    for key, (_, kind) in TABLES.items():
        table, default = found.get(key, {}), named.get(key, {"kind": kind})
        table = {"kind": table} if isinstance(table, str) else table
        table = table.model_dump() if isinstance(table, BaseModel) else table
        if isinstance(table, dict):
            found[key] = (default if table.get("kind", default["kind"]) == default["kind"] else {}) | table
    for old, (key, name, idle) in MOVED.items():
        if old in found and isinstance(found[key], dict):
            value = found.pop(old)
            if name in _keys(key, found[key]["kind"]) or (idle is not None and value != idle):
                found[key] = found[key] | {name: value}
    return found


def _keys(table: str, kind: str) -> set[str]:
    """The keys that a kind of a table has; none for an unknown kind."""
    kinds = get_args(get_args(TABLES[table][0])[0])
    return {key for each in kinds if each.model_fields["kind"].default == kind for key in each.model_fields}


def precedence(override: str) -> tuple[bool, int]:
    """Sort key of overrides: an algorithm comes first, and a table before its keys."""
    key = override.partition("=")[0].strip()
    return key not in {"distill.algorithm", "distill.preset"}, key.count(".")


def apply(data: dict[str, Any], override: str) -> None:
    """Set one key of a recipe, making its sections; the value is TOML, or else a bare word.

    Raises ConfigError naming the override.
    """
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write section.key=value")
    *sections, last = key.strip().split(".")
    if sections == ["model"] and last in MOVED_TO_COMPUTE:
        sections = ["compute"]
    place = data
    for section in sections:
        below = place.setdefault(section, {})
        if isinstance(below, str):
            below = place[section] = {"kind": below}  # a table written as a bare word
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
        place = below
    try:
        place[last] = parse_toml(f"v = {text}")["v"]
    except ValueError:
        place[last] = text  # a bare word such as global is a string
    if sections[:1] == ["distill"]:
        _outrank(data["distill"], sections[1:], last)


def _outrank(section: dict[str, Any], table: list[str], key: str) -> None:
    """Remove from [distill] whatever a key just set outranks: its flat form, or everything that an algorithm sets."""
    algorithm = ALGORITHMS.get(str(section[key])) if key in {"algorithm", "preset"} and not table else None
    switches = algorithm.switches() if algorithm else {}
    for old, (moved_to, name, _) in MOVED.items():
        if moved_to in switches or [moved_to, name] == [*table, key]:
            section.pop(old, None)
    for switch in switches:
        section.pop(switch, None)
