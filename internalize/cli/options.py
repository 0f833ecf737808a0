"""Arguments and options of several commands, and the output of their results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from internalize.config.schema import Config
from internalize.errors import UserError

from .output import echo
from .recipes import recipe_file

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe value."
)
recipe_argument = click.argument("recipe", type=FILE, callback=lambda _, __, given: recipe_file(given))
json_option = click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")


def print_figures(text: str, figures: Mapping[str, Any] | Sequence[Any], *, as_json: bool) -> None:
    """Print a sentence, or the same numbers as one line of JSON."""
    echo(json.dumps(figures) if as_json else text)


def require_source(config: Config) -> None:
    """Refuse a model that does not exist before any slow work."""
    if config.model.source == "builtin":
        from internalize.inference.architecture import builtin_gguf

        builtin_gguf()
    source = Path(config.model.source).expanduser()
    if source.suffix == ".gguf" and not source.is_file():
        raise UserError(f"model.source: the file {source} does not exist")
    if source.suffix == ".gguf" and source.open("rb").read(4) != b"GGUF":
        raise UserError(f"model.source: {source} is not a GGUF file")
    if source.is_absolute() and not source.exists():
        raise UserError(f"model.source: the folder {source} does not exist")
