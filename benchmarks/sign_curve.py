"""What warning signs are worth: how often each fires ahead of a collapse, against how often it fires ahead of none.

    python -m benchmarks.sign_curve docs/records/lab_signs docs/records/lab_sceptic docs/records/lab_better
    python -m benchmarks.sign_curve docs/records/lab_signs --figure sign_curve.png

Reads packed runs, as `internalize study --records` writes them, that were measured after every iteration. What is
judged is a moment: an iteration of a run that has not collapsed yet. The collapse (`evaluation/collapse.py`) is ahead
if it comes within the next `AHEAD` iterations, not ahead if the run is known to hold for so many; moments of which
neither is known count for nothing. So a run that holds for ten iterations is not blamed for having had more of them
in which a sign could fire. Every sign is computed anew at `FACTORS` times the default level of its test, and the least
rise divided by it, which makes its curve; the table counts at the defaults. Area: that under the curve, 0.5 for a sign
that knows nothing; its interval is a bootstrap over runs, whose moments resemble each other.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np

from internalize.evaluation.signs import Thresholds, cautions
from internalize.records import Mode
from internalize.report.comparison import members
from internalize.report.figures import save
from internalize.report.markdown import render_part
from internalize.report.page import Table
from internalize.report.run_report import RunReport, load
from internalize.report.signs import WHERE, diagnose
from internalize.report.slim import unpack_study

FACTORS = (0.001, 0.01, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0, 40.0, 49.0)
AHEAD = 3  # iterations
RESAMPLES, DRAWN = 500, 4  # replicates of an area; curves in the figure
Name = tuple[str, Mode]


class Moment(NamedTuple):
    """One iteration of a run that has not collapsed yet: whether it will soon, and which signs fire at which factor."""

    ahead: bool
    fired: frozenset[tuple[Name, float]]


class Watched(NamedTuple):
    """The moments of one run, and whether it collapsed."""

    moments: tuple[Moment, ...]
    collapsed: bool


@click.command(help=__doc__)
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--figure", type=click.Path(path_type=Path, dir_okay=False), help="Draw the best curves here.")
def main(records: tuple[Path, ...], figure: Path | None) -> None:
    runs = [watched(report) for folder in records for report in reports(folder)]
    moments = [moment for run in runs for moment in run.moments]
    ahead = sum(moment.ahead for moment in moments)
    click.echo(f"{len(runs)} runs, of which {sum(run.collapsed for run in runs)} collapsed; "
               f"{len(moments)} iterations, of which {ahead} lie up to {AHEAD} before a collapse.\n")  # fmt: skip
    if ahead in (0, len(moments)):
        raise click.ClickException("signs can only be told apart with iterations of both kinds")
    names = sorted({name for moment in moments for name, _ in moment.fired}, key=lambda name: -area(moments, name))
    random = np.random.default_rng(0)
    click.echo(render_part(Table([row(runs, name, random) for name in names], text=("sign", "where"))))
    if figure:
        save(figure, lambda drawn: draw(drawn, moments, names[:DRAWN]), (6.4, 4.8))


def reports(folder: Path) -> Iterator[RunReport]:
    """The packed runs of a study."""
    with tempfile.TemporaryDirectory() as place:
        out = Path(place) / "study"
        unpack_study(folder, out)
        yield from (load(out / member.folder) for member in members(out))


def watched(report: RunReport) -> Watched:
    """The moments of a run."""
    found = diagnose(report).collapse
    last = report.iterations[-1].number
    moments = []
    for place, now in enumerate(report.iterations):
        ahead = within(now.number, last, found.iteration if found else None)
        if now.number and now.internalized and ahead is not None:
            fired = {
                ((caution.sign, caution.mode), factor)
                for factor in FACTORS
                for caution in cautions(report.iterations[:place], now, scaled(factor))
            }
            moments.append(Moment(ahead, frozenset(fired)))
    return Watched(tuple(moments), found is not None)


def within(now: int, last: int, collapse: int | None) -> bool | None:
    """Whether the collapse comes within the next `AHEAD` iterations; None if it has come, or the run ends before."""
    if collapse is not None and now >= collapse:
        return None
    if collapse is not None and collapse - now <= AHEAD:
        return True
    return False if last - now >= AHEAD else None


def scaled(factor: float) -> Thresholds:
    """Thresholds that let a sign fire the more often the greater the factor."""
    default = Thresholds()
    return Thresholds(repeated_rise=default.repeated_rise / factor, level=default.level * factor)


def share(moments: Sequence[Moment], name: Name, factor: float) -> float:
    """The share of moments at which a sign fires."""
    return sum((name, factor) in moment.fired for moment in moments) / len(moments) if moments else 0.0


def curve(moments: Sequence[Moment], name: Name) -> list[tuple[float, float]]:
    """The shares of moments at which a sign fires, ahead of none and ahead of a collapse, from never to always."""
    soon, never = ([moment for moment in moments if moment.ahead == kind] for kind in (True, False))
    points = {(share(never, name, factor), share(soon, name, factor)) for factor in FACTORS}
    return sorted({(0.0, 0.0), *points, (1.0, 1.0)})


def area(moments: Sequence[Moment], name: Name) -> float:
    """The area under the curve."""
    alarms, seen = zip(*curve(moments, name), strict=True)
    return float(np.trapezoid(seen, alarms))


def row(runs: Sequence[Watched], name: Name, random: np.random.Generator) -> dict[str, str]:
    """A row of the table: at the default threshold, and the area."""
    areas = [
        area([moment for i in random.integers(len(runs), size=len(runs)) for moment in runs[i].moments], name)
        for _ in range(RESAMPLES)
    ]
    low, high = np.quantile(areas, (0.025, 0.975))
    fell = [run for run in runs if any(moment.ahead for moment in run.moments)]
    seen = sum(any(moment.ahead and (name, 1.0) in moment.fired for moment in run.moments) for run in fell)
    never = [moment for run in runs for moment in run.moments if not moment.ahead]
    return {
        "sign": name[0],
        "where": WHERE[name[1]],
        "collapses seen": f"{seen} of {len(fell)}",
        "false alarms": f"{share(never, name, 1.0):.0%} of {len(never)} iterations",
        "area": f"{area([moment for run in runs for moment in run.moments], name):.2f} [{low:.2f}, {high:.2f}]",
    }


def draw(figure: object, moments: Sequence[Moment], names: Sequence[Name]) -> None:
    """The curves of the best signs."""
    axes = figure.subplots()  # type: ignore[attr-defined]
    axes.plot([0, 1], [0, 1], color="#9ca3af", linewidth=1, linestyle=(0, (4, 3)))
    for name in names:
        alarms, seen = zip(*curve(moments, name), strict=True)
        axes.plot(alarms, seen, marker="o", markersize=3, label=f"{name[0]} {WHERE[name[1]]}")
    axes.set(xlabel="iterations ahead of no collapse at which it fires",
             ylabel=f"iterations up to {AHEAD} before a collapse at which it fires",
             xlim=(0, 1), ylim=(0, 1))  # fmt: skip
    axes.legend(loc="lower right", fontsize=8)


if __name__ == "__main__":
    main()
