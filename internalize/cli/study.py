"""`study` runs a grid of recipes and compares them; `diagnose` and `view` read finished runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from internalize.runs.progress import going_on_by, progress

if TYPE_CHECKING:
    from internalize.config.schema import Config


@click.command("study")
@click.argument("grid", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the study.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of every cell.")
@click.option("--cell", "cells", multiple=True, help="Run only this cell (repeatable; default: all).")
@click.option("--seed", "seeds", multiple=True, type=int, help="Run only this seed (repeatable; default: all).")
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that keeps every finished run packed, without episodes and weights; those in it are not run again.",
)
@click.option("--report-only", is_flag=True, help="Run nothing; compare the finished runs.")
def study_command(
    grid: Path,
    out: Path,
    overrides: tuple[str, ...],
    cells: tuple[str, ...],
    seeds: tuple[int, ...],
    records: Path | None,
    *,
    report_only: bool,
) -> None:
    """Run a grid of recipes and seeds and compare them.

    The same command continues a stopped study.
    A run that fails does not stop the others; the command then ends with an error that names it.
    Several processes may work on one study: start the command once on each machine.
    """
    from internalize.report.publish import publish_study
    from internalize.report.slim import unpack_study
    from internalize.stages.study import STUDY

    if records:
        unpack_study(records, out)
    try:
        if not report_only:
            _run(grid, out, overrides, cells, seeds, records)
    finally:  # also compare what is there when the study was interrupted or runs of it failed
        if (out / STUDY).exists():
            publish_study(out)


def _run(
    grid: Path,
    out: Path,
    overrides: Sequence[str],
    cells: Sequence[str],
    seeds: Sequence[int],
    records: Path | None,
) -> None:
    from rich.console import Console

    from internalize.loop import run as run_loop
    from internalize.report.publish import write_run
    from internalize.report.slim import is_slim, pack_member
    from internalize.report.terminal import plain_text
    from internalize.runs.store import require_same
    from internalize.stages.study import StudyPart, study

    def note(message: str) -> None:
        Console(stderr=True).print(plain_text(message), soft_wrap=True)

    with going_on_by("run the same command again"), progress() as show:

        def play(config: Config, folder: Path) -> None:
            if is_slim(folder):
                require_same(folder, config)
                return
            name = f"{folder.parent.name} {folder.name}"
            run_loop(config, folder, resume=True, report=lambda stage, a, b: show(f"{name}: {stage}", a, b))
            write_run(folder)
            if records:
                pack_member(out, folder, records)

        study(grid, out, play, overrides, note, StudyPart(cells, seeds))


@click.command("diagnose")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option("--threshold", "changed", multiple=True, metavar="SIGN=VALUE", help="Threshold of a sign (repeatable).")
def diagnose_command(runs: tuple[Path, ...], changed: tuple[str, ...]) -> None:
    """Say when success collapsed, and which signs came first.

    RUNS are folders of runs or studies.
    """
    from rich.console import Console

    from internalize.evaluation.signs import thresholds
    from internalize.report.publish import publish_diagnoses

    publish_diagnoses(runs, Console(), thresholds(changed))


@click.command("view")
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False))
@click.argument("task", default="")
@click.option("--iteration", "iterations", type=int, multiple=True, help="Only these iterations (default: all).")
def view_command(run_dir: Path, task: str, iterations: tuple[int, ...]) -> None:
    """Show which tasks succeeded at which iteration.

    With TASK (the start of an id), its episodes side by side.
    """
    from rich.console import Console

    from internalize.report import view

    view.publish(run_dir, task, iterations, Console())
