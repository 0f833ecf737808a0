"""The texts that a language model is asked with, one file each, with $names to be filled in.

principle.txt and instance.txt say what an item is; everything else is the same for both.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template


def prompt(name: str, **values: object) -> str:
    """The text `name`.txt with its `values`. A value is put in as it is: a $ in it stays a $."""
    return _template(name).substitute(values).strip()


@cache
def _template(name: str) -> Template:
    return Template((Path(__file__).parent / f"{name}.txt").read_text(encoding="utf-8"))
