"""What `internalize diagnose` prints: each run's verdict and signs, and the signs of all runs against their collapses.

Left out: single reports. What must not change: nothing is written, and a run that collapsed is never counted among
those where a sign is a false alarm.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from internalize.evaluation.signs import Thresholds
from internalize.report.comparison import members

from .run_report import load
from .signs import LEAD_HEAD, SIGN_HEAD, Diagnosis, diagnose, lead_rows, sign_rows, verdict
from .terminal import plain_text, print_table


def diagnoses(paths: Sequence[Path], limits: Thresholds = Thresholds()) -> list[Diagnosis]:  # noqa: B008 - frozen
    """Of every run named, and of every run begun in a study named. Raises UserError for a folder that is neither."""
    runs = [path for path in paths if not (path / "study.json").exists()]
    apart = len({path.name for path in runs}) == len(runs)
    named = [(path.name if apart else str(path), path) for path in runs]
    for study in (path for path in paths if (path / "study.json").exists()):
        named += [(f"{m.cell}, seed {m.seed}", study / m.folder) for m in members(study)]
    return [diagnose(load(path, limits), name) for name, path in named]


def publish(paths: Sequence[Path], console: Console, limits: Thresholds = Thresholds()) -> None:  # noqa: B008 - frozen
    """Print the signs of each run, and when there are several those of all."""
    found = diagnoses(paths, limits)
    for one in found:
        console.print(plain_text(verdict(one), style="bold"))
        print_table(SIGN_HEAD, sign_rows(one.signs), console, text=(0, 1, 3))
    if len(found) > 1:
        console.print(plain_text("All runs: when a sign first fired, and iterations from there to the collapse"))
        print_table(LEAD_HEAD, lead_rows(found), console, text=(0, 1))
