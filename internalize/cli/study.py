"""`study` runs a grid of recipes and compares them; `diagnose` and `view` read finished runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import click

from internalize.runs.progress import going_on_by, progress

if TYPE_CHECKING:
    from internalize.config.schema import Config
    from internalize.stages.study import Play, StudyPart

AGAIN = "run the same command again"


@click.command("study")
@click.argument("grid", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder for the study.")
@click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a value of every cell.")
@click.option("--cell", "cells", multiple=True, help="Run only this cell (repeatable; default: all).")
@click.option("--seed", "seeds", multiple=True, type=int, help="Run only this seed (repeatable; default: all).")
@click.option(
    "--records",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for packed records of finished runs, without episodes and weights; runs in it are not run again.",
)
@click.option("--workers", default=0, metavar="N", help="Run N runs at a time, each on a worker of Ray (default: 0).")
@click.option("--gpus", default=0.0, help="GPUs of each worker.")
@click.option("--report-only", is_flag=True, help="Run nothing; compare the finished runs.")
def study_command(  # noqa: PLR0913, PLR0917 - one option each
    grid: Path,
    out: Path,
    overrides: tuple[str, ...],
    cells: tuple[str, ...],
    seeds: tuple[int, ...],
    records: Path | None,
    workers: int,
    gpus: float,
    *,
    report_only: bool,
) -> None:
    """Run a grid of recipes and seeds and compare them.

    The same command continues a stopped study.
    A run that fails does not stop the others; the command then ends with an error that names it.
    Several processes may work on one study: start the command once on each machine, or give it --workers.
    """
    from internalize.report.publish import publish_study
    from internalize.report.slim import unpack_study
    from internalize.stages.study import STUDY, StudyPart

    if records:
        unpack_study(records, out)
    try:
        if not report_only:
            _run(grid, out, overrides, StudyPart(cells, seeds), records, workers, gpus)
    finally:  # compare finished runs also after an interruption or failed runs
        if (out / STUDY).exists():
            publish_study(out)


def _run(
    grid: Path,
    out: Path,
    overrides: Sequence[str],
    part: StudyPart,
    records: Path | None,
    workers: int,
    gpus: float,
) -> None:
    from internalize.report.publish import write_run
    from internalize.report.slim import is_slim, pack_member
    from internalize.runs.store import require_same
    from internalize.stages.study import study

    one_at_a_time = Lock()  # pages are drawn by one thread

    with going_on_by(AGAIN), _playing(workers, gpus) as run_one:

        def play(config: Config, folder: Path) -> None:
            if is_slim(folder):
                require_same(folder, config)
                return
            run_one(config, folder)
            with one_at_a_time:
                write_run(folder)
                if records:
                    pack_member(out, folder, records)

        study(grid, out, play, overrides, _note, part, at_once=max(1, workers))


@contextmanager
def _playing(workers: int, gpus: float) -> Iterator[Play]:
    """The function that plays a run: in this process, or on one of `workers` workers."""
    from internalize.loop import run as run_loop
    from internalize.stages.study_workers import on_ray

    if workers:
        with on_ray(_in_worker, workers, gpus) as play_there:
            yield play_there
        return
    with progress() as show:

        def play_here(config: Config, folder: Path) -> None:
            name = f"{folder.parent.name} {folder.name}"
            run_loop(config, folder, resume=True, report=lambda stage, a, b: show(f"{name}: {stage}", a, b))

        yield play_here


def _in_worker(config: Config, folder: Path) -> None:
    from internalize.loop import run as run_loop

    run_loop(config, folder, resume=True)


def _note(message: str) -> None:
    from rich.console import Console

    from internalize.report.terminal import plain_text

    Console(stderr=True).print(plain_text(message), soft_wrap=True)


@click.command("diagnose")
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--threshold",
    "changed",
    multiple=True,
    metavar="NAME=VALUE",
    help="Another threshold: level or repeated_rise (repeatable).",
)
def diagnose_command(runs: tuple[Path, ...], changed: tuple[str, ...]) -> None:
    """Show when success collapsed, and which signs came first.

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
