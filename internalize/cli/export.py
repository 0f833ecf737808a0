"""`internalize export`: weights and their model card for programs that know nothing of this one.

Left out: what is written (export.py). What must not change: nothing is loaded before the arguments are known to fit.
"""

from __future__ import annotations

from pathlib import Path

import click

_FOLDER = click.Path(path_type=Path, file_okay=False)


@click.command("export")
@click.argument("source", metavar="RUN_OR_CHECKPOINT", type=_FOLDER)
@click.option("--out", type=_FOLDER, required=True, help="Folder to write; new or empty.")
@click.option("--merged", is_flag=True, help="The whole model instead of the adapter alone.")
@click.option(
    "--recipe", type=click.Path(path_type=Path, dir_okay=False), help="Recipe of a checkpoint that lies in no run."
)
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="What was overridden in it.")
def export_command(source: Path, out: Path, recipe: Path | None, overrides: tuple[str, ...], *, merged: bool) -> None:
    """A run's kept checkpoint, or any checkpoint, as a folder for transformers or PEFT, with a model card."""
    from internalize.report.export import export, find

    found = find(source, recipe, overrides)
    kind = export(found, out, merged=merged)
    click.echo(f"{out}: the {kind} of {found.weights}, with its card in README.md")
