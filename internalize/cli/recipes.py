"""`recipe` shows the recipes of the package; `init` writes a commented one, with a minimal example, to start from."""

from __future__ import annotations

import shutil
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import click

from internalize.errors import UserError, did_you_mean

from .output import echo, echo_data

KINDS = ("docs", "agent", "logs", "endpoint", "environment", "mcp")


@click.group("recipe")
def recipe_group() -> None:
    """List and show the recipes of the package.

    `internalize run NAME` takes their names.
    """


@recipe_group.command("list")
def recipe_list() -> None:
    """List the recipes, one line each."""
    for name, file in _recipes().items():
        echo(f"{name:<22} {_about(file)}")


@recipe_group.command("show")
@click.argument("name")
def recipe_show(name: str) -> None:
    """Print a recipe, to be changed and saved under another name."""
    recipes = _recipes()
    if name not in recipes:
        raise UserError(f"there is no recipe {name!r} (there are {', '.join(recipes)}){did_you_mean(name, recipes)}")
    echo_data(recipes[name].read_text(encoding="utf-8"))


@click.command("init")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--from", "kind", type=click.Choice(KINDS), default="docs", show_default=True, help="What you have.")
def init_command(folder: Path, kind: str) -> None:
    """Write a commented recipe with a minimal example.

    They go into FOLDER; files that exist are never replaced.

    --from says what you have: documents, an agent, its logs, an endpoint, an environment of your own, or an MCP server.
    """
    with as_file(files(__package__) / "init" / kind) as source:
        found = sorted(file for file in source.rglob("*") if file.is_file() and file.suffix != ".pyc")
        targets = [folder / file.relative_to(source) for file in found]
        if taken := [target for target in targets if target.exists()]:
            raise UserError(f"{taken[0]}: exists already; choose another folder")
        for file, target in zip(found, targets, strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    echo(f"Written: {', '.join(map(str, targets))}\nNext: the commands at the head of {folder / 'recipe.toml'}")


def recipe_file(given: Path) -> Path:
    """A recipe's file: the one that is given, or else the one of that name in the package."""
    if given.exists() or given.suffix or str(given) not in (recipes := _recipes()):
        return given
    with as_file(recipes[str(given)]) as file:  # a real file: the package is installed unpacked
        return file


def _recipes() -> dict[str, Traversable]:
    """The recipes of the package by name, those of studies with `studies/` before it."""
    root = files("internalize.config") / "recipes"  # a link to the folder of the checkout
    folders = {"": root, **{f"{entry.name}/": entry for entry in root.iterdir() if entry.is_dir()}}
    found = {
        f"{prefix}{file.name.removesuffix('.toml')}": file
        for prefix, folder in folders.items()
        for file in folder.iterdir()
        if file.name.endswith(".toml")
    }
    return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))


def _about(file: Traversable) -> str:
    """The comment that a recipe begins with, its first sentence."""
    lines = file.read_text(encoding="utf-8").splitlines()
    head = " ".join(line.lstrip("# ") for line in lines[: next((i for i, n in enumerate(lines) if n[:1] != "#"), 0)])
    return head.partition(". ")[0].rstrip(".")
