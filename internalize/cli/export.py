"""`internalize export`: writes a checkpoint and its model card in the format of transformers or PEFT."""

from __future__ import annotations

from pathlib import Path

import click

from .output import echo

_GGUF = ".gguf"


@click.command("export")
@click.argument("source", metavar="RUN_OR_CHECKPOINT", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write to, new or empty; or a new file NAME.gguf, made by llama.cpp's converter.",
)
@click.option("--starter", is_flag=True, help="Write the model that a run or a recipe starts from, for a server.")
@click.option("--merged", is_flag=True, help="Write the whole model instead of only the adapter.")
@click.option(
    "--recipe", type=click.Path(path_type=Path, dir_okay=False), help="Recipe of a checkpoint outside a run directory."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="A recipe value that was overridden."
)
def export_command(
    source: Path, out: Path, recipe: Path | None, overrides: tuple[str, ...], *, starter: bool, merged: bool
) -> None:
    """Export a run's kept checkpoint for transformers or PEFT.

    Any other checkpoint too; a model card is written beside it. With --starter, SOURCE may be a recipe.
    """
    from internalize.report.export import export, export_starter, find

    if starter:
        export_starter(source, out, overrides)
        echo(f"{out}: the model that {source} starts from")
        return
    checkpoint = find(source, recipe, overrides)
    if out.suffix == _GGUF:
        from internalize.report.gguf import export_gguf

        export_gguf(checkpoint, out)
        echo(f"{out}: the model of {checkpoint.weights}; llama-server -m {out} serves it")
        return
    kind = export(checkpoint, out, merged=merged)
    echo(f"{out}: the {kind} of {checkpoint.weights}; its model card is README.md")
