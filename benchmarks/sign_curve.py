"""What warning signs are worth: how many collapses each sees in time, against how often it warns of none.

    python -m benchmarks.sign_curve docs/records/lab_signs docs/records/lab_sceptic docs/records/lab_better
    python -m benchmarks.sign_curve docs/records/lab_signs --figure sign_curve.png

Reads packed runs, as `internalize study --records` writes them; `lab_signs` has runs of lab_grid.toml that were
measured after every iteration. A run collapses where its success fell for good (`evaluation/collapse.py`). In time:
of the runs that collapse, those in which the sign fired in an earlier iteration. False alarms: of the runs that never
do, those in which it fired at all. A sign with a threshold is computed anew at `FACTORS` times its default, which
makes its curve; the others are one point. Seen: the area under the curve, 0.5 for a sign that knows nothing. An area
of few runs is not sure: its interval is a bootstrap over runs of both kinds.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from internalize.evaluation.signs import Caution, Thresholds, cautions
from internalize.records import Mode
from internalize.report.comparison import members
from internalize.report.figures import save
from internalize.report.markdown import render_part
from internalize.report.page import Table
from internalize.report.run_report import RunReport, load
from internalize.report.signs import WHERE, diagnose
from internalize.report.slim import unpack_study

FACTORS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5, 2.0, 3.0, 5.0, 10.0)
RESAMPLES, DRAWN = 500, 4  # replicates of an area; curves in the figure
Name = tuple[str, Mode | None]


class Watched(NamedTuple):
    """One run: when it collapsed (None = never), and the first iteration of each sign at each factor."""

    collapse: int | None
    first: Mapping[tuple[Name, float], int]

    def fired(self, name: Name, factor: float) -> bool:
        """Whether the sign fired; in a run that collapsed: in time."""
        at = self.first.get((name, factor))
        return at is not None and (self.collapse is None or at < self.collapse)


@click.command(help=__doc__)
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw the best curves here.")
def main(records: tuple[Path, ...], figure: Path | None) -> None:
    runs = [watched(report) for folder in records for report in reports(folder)]
    fell, held = ([run for run in runs if (run.collapse is not None) == kind] for kind in (True, False))
    click.echo(f"{len(runs)} runs, of which {len(fell)} collapsed.\n")
    if not (fell and held):
        raise click.ClickException("signs can only be told apart with runs of both kinds")
    names = sorted({name for run in runs for name, _ in run.first}, key=lambda name: -area(fell, held, name))
    random = np.random.default_rng(0)
    click.echo(render_part(Table([row(fell, held, name, random) for name in names], text=("sign", "where"))))
    if figure:
        save(figure, lambda drawn: draw(drawn, fell, held, names[:DRAWN]), (6.4, 4.8))


def reports(folder: Path) -> Iterator[RunReport]:
    """The packed runs of a study."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "study"
        unpack_study(folder, out)
        yield from (load(out / member.folder) for member in members(out))


def watched(report: RunReport) -> Watched:
    """When a run collapsed, and when each sign first fired at each threshold."""
    found = diagnose(report).collapse
    first: dict[tuple[Name, float], int] = {}
    for factor in FACTORS:
        limits = Thresholds(**{name: factor * of.default for name, of in Thresholds.model_fields.items()})
        for caution in _fired(report, limits):
            first.setdefault(((caution.sign, caution.mode), factor), caution.iteration)
    return Watched(found.iteration if found else None, first)


def _fired(report: RunReport, limits: Thresholds) -> Iterator[Caution]:
    for place, now in enumerate(report.iterations):
        yield from cautions(report.iterations[:place], now, report.entities, limits)


def curve(fell: Sequence[Watched], held: Sequence[Watched], name: Name) -> list[tuple[float, float]]:
    """False alarms and collapses seen in time at every threshold, from never to always."""
    points = {(share(held, name, factor), share(fell, name, factor)) for factor in FACTORS}
    return sorted({(0.0, 0.0), *points, (1.0, 1.0)})


def share(runs: Sequence[Watched], name: Name, factor: float) -> float:
    return sum(run.fired(name, factor) for run in runs) / len(runs)


def area(fell: Sequence[Watched], held: Sequence[Watched], name: Name) -> float:
    """The area under the curve."""
    alarms, seen = zip(*curve(fell, held, name), strict=True)
    return float(np.trapezoid(seen, alarms))


def row(fell: Sequence[Watched], held: Sequence[Watched], name: Name, random: np.random.Generator) -> dict[str, str]:
    """A row of the table: at the default threshold, and the area."""
    areas = [
        area([fell[i] for i in random.integers(len(fell), size=len(fell))],
             [held[i] for i in random.integers(len(held), size=len(held))], name)
        for _ in range(RESAMPLES)
    ]  # fmt: skip
    low, high = np.quantile(areas, (0.025, 0.975))
    leads = sorted(
        run.collapse - at for run in fell
        if run.collapse is not None and run.fired(name, 1.0) and (at := run.first.get((name, 1.0))) is not None
    )  # fmt: skip
    return {
        "sign": name[0],
        "where": WHERE[name[1]],
        "in time": f"{sum(run.fired(name, 1.0) for run in fell)} of {len(fell)}",
        "iterations before": str(leads[len(leads) // 2]) if leads else "-",
        "false alarms": f"{sum(run.fired(name, 1.0) for run in held)} of {len(held)}",
        "seen": f"{area(fell, held, name):.2f} [{low:.2f}, {high:.2f}]",
    }


def draw(figure: object, fell: Sequence[Watched], held: Sequence[Watched], names: Sequence[Name]) -> None:
    """The curves of the best signs."""
    axes = figure.subplots()  # type: ignore[attr-defined]
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle=(0, (4, 3)))
    for name in names:
        alarms, seen = zip(*curve(fell, held, name), strict=True)
        axes.plot(alarms, seen, marker="o", markersize=3, label=f"{name[0]} {WHERE[name[1]] if name[1] else ''}")
    axes.set(
        xlabel="runs without a collapse in which it fired", ylabel="collapses seen in time", xlim=(0, 1), ylim=(0, 1)
    )
    axes.legend(loc="lower right", fontsize=8)


if __name__ == "__main__":
    main()
