"""`section.key=value` written into the tables of a recipe; the value is TOML, or else a bare word.

Left out: what the keys mean (config.py).
"""

from __future__ import annotations

import tomllib
from typing import Any

from internalize.errors import ConfigError

from . import presets as regimes


def apply(data: dict[str, Any], override: str) -> None:
    """Set one key, making its sections. Raises ConfigError naming the override."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write section.key=value")
    *sections, last = key.strip().split(".")
    for section in sections:
        data = data.setdefault(section, {})
        if not isinstance(data, dict):
            raise ConfigError(f"--set {override!r}: {section} is a value, not a section")
    try:
        data[last] = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        data[last] = text  # a bare word such as global is a string
    if key.strip() == "distill.preset":
        regimes.outrank(data)
