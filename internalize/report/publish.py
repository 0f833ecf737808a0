"""Print the report of a run or a study and write its pages: Markdown, HTML with jinja2, figures with matplotlib."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from internalize.config.schema import TrackConfig
from internalize.evaluation.signs import Thresholds
from internalize.runs.files import write_atomic
from internalize.runs.tracking import tracking
from internalize.stages.study import STUDY

from . import html, markdown
from .comparison import compare, members
from .page import Page, Picture
from .run_page import REFRESH, run_page
from .run_report import RunReport, load
from .signs import Diagnosis, diagnose, leads_table, signs_table, verdict
from .study_page import study_page
from .terminal import plain_text, print_page, print_part


def publish_run(run_dir: Path) -> None:
    """Print the report of a run and write report.md, report.html and figure.png into it."""
    report = load(run_dir)
    page = run_page(report)
    print_page(page, Console())
    _say_written(write(page, run_dir, "report"))
    _track(report)


def write_run(run_dir: Path) -> None:
    """Write the files of `publish_run` and print nothing."""
    report = load(run_dir)
    write(run_page(report), run_dir, "report")
    _track(report)


def watch_run(run_dir: Path, seconds: float = REFRESH) -> None:
    """Write the pages repeatedly until the run is finished."""
    while (report := load(run_dir)).finished < report.planned:
        _say_written(write(run_page(report), run_dir, "report"))
        time.sleep(seconds)


def _track(report: RunReport) -> None:
    """Send the drawn figure to the recipe's trackers."""
    picture, config = report.path / "figure.png", TrackConfig.model_validate(report.info.config.get("track", {}))
    if config.to and picture.exists():
        with tracking(config, report.path) as tracker:
            tracker.figure("success", picture)


def publish_study(out: Path) -> None:
    """Print the comparison of a study's cells and write study.md, study.html and study.png into it."""
    page = study_page(compare(out))
    print_page(page, Console())
    _say_written(write(page, out, "study"))


def write(page: Page, folder: Path, name: str) -> list[Path]:
    """Write a page into `folder` as Markdown and, if jinja2 is installed, HTML. Returns the written files."""
    texts = {"md": markdown.render(page, folder), "html": html.render(page)}
    written = {folder / f"{name}.{ending}": text for ending, text in texts.items() if text is not None}
    for path, text in written.items():
        write_atomic(path, text)
    pictures = (part.file for section in page.sections for part in section.parts if isinstance(part, Picture))
    return [*written, *(folder / file for file in pictures if file and (folder / file).exists())]


def _say_written(paths: Sequence[Path]) -> None:
    for path in paths:
        Console(stderr=True).print(f"Written: {path}", highlight=False, soft_wrap=True)


def diagnoses(paths: Sequence[Path], limits: Thresholds = Thresholds()) -> list[Diagnosis]:  # noqa: B008 - frozen
    """The diagnosis of every named run, and of every run of a named study. Raises UserError for other folders."""
    runs = [path for path in paths if not (path / STUDY).exists()]
    are_distinct = len({path.name for path in runs}) == len(runs)
    named = [(path.name if are_distinct else str(path), path) for path in runs]
    for study in (path for path in paths if (path / STUDY).exists()):
        named += [(f"{m.cell}, seed {m.seed}", study / m.folder) for m in members(study)]
    return [diagnose(load(path, limits), name) for name, path in named]


def publish_diagnoses(paths: Sequence[Path], console: Console, limits: Thresholds = Thresholds()) -> None:  # noqa: B008 - frozen
    """Print the verdict and signs of each run, and when there are several, all signs against the collapses."""
    found = diagnoses(paths, limits)
    for one in found:
        console.print(plain_text(verdict(one), style="bold"))
        print_part(signs_table(one.signs), console)
    if len(found) > 1:
        console.print(plain_text("All runs: when a sign first fired, and iterations from there to the collapse"))
        print_part(leads_table(found), console)
