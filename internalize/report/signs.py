"""Warning signs against collapses in words and rows: when each sign first fired, and how long before the collapse.

A sign that fires at the collapse or later has no lead, and one of a run that never collapsed is a false alarm.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from internalize.evaluation.collapse import Collapse, collapse
from internalize.evaluation.signs import Sign, signs
from internalize.evaluation.stats import minimum_detectable
from internalize.records import Mode, Record

from .page import Table
from .run_report import RunReport
from .text import NOTHING, change_words

MOST_NAMED = 3  # runs named in a cell of a table
WHERE: dict[Mode, str] = {"internalized": "without the pool", "in_context": "with the pool"}

# What helps against each, in keys of the recipe.
ADVICE = {
    "repeated_rise": "train on successes only, and lower distill.epochs",
    "suite_forgotten": "replay earlier examples (distill.replay), or stay near the starter (distill.kl_anchor)",
    "below_starter": "use a gate (gate.rule = 'confirm'), or lower distill.lr",
    "pool_hurts": "let items that harm go (extract.retire), show fewer (inject.k), or train in context too "
    "(distill.in_context)",
}


class Diagnosis(Record):
    """One run: its collapse, if there was one, and its signs in the order in which they first fired."""

    run: str
    iterations: int
    tasks: int
    collapse: Collapse | None
    signs: tuple[Sign, ...]
    detectable: float  # loss of success that the run's tasks detect with power 0.8


def diagnose(report: RunReport, name: str = "") -> Diagnosis:
    """The signs of a run, and its collapse, if there was one."""
    scores = [(i.number, report.scores(i.number)) for i in report.kept if i.internalized]
    starter = report.starter.internalized if report.starter else None
    success = starter.success if starter else None
    return Diagnosis(
        run=name or report.path.name,
        iterations=report.finished,
        tasks=success.n if success else 0,
        collapse=collapse(scores, report.settings.resamples),
        signs=signs_of(report),
        detectable=minimum_detectable(success.n, success.mean) if success else 1.0,
    )


def signs_of(report: RunReport) -> tuple[Sign, ...]:
    """The signs of a run, in the order of their first firing."""
    return signs([caution for iteration in report.iterations for caution in iteration.cautions])


def verdict(found: Diagnosis) -> str:
    """One sentence on the outcome of a run."""
    if found.collapse is None:
        return (
            f"{found.run}: no collapse shown in {found.iterations} iterations ({found.tasks} tasks: "
            f"a fall below about {100 * found.detectable:.0f} points is easily missed)."
        )
    there = found.collapse
    fell = f"{change_words(there.change)} since iteration {there.best}"
    last = "" if there.iteration < found.iterations else " It is the last iteration: nothing shows that it stays."
    return f"{found.run}: collapsed at iteration {there.iteration}, {fell}.{last}"


def signs_table(found: Sequence[Sign]) -> Table:
    """Each sign of a run."""
    rows = [
        {
            "sign": sign.name,
            "where": WHERE[sign.mode],
            "iterations": ranges(sign.iterations),
            "what it said first": sign.message,
        }
        for sign in found
    ]
    return Table(rows, text=("sign", "where", "what it said first"))


def leads_table(found: Sequence[Diagnosis]) -> Table:
    """Each sign that fired in any run, the one with the greatest median lead first."""
    leads = {(s.name, s.mode): lead_of(found, s.name, s.mode) for one in found for s in one.signs}
    rows = [
        {
            "sign": name,
            "where": WHERE[mode],
            "first fired": _first(found, name, mode),
            "lead": _lead(of_sign, found),
            "false alarms": _alarms(found, name, mode),
        }
        for (name, mode), of_sign in sorted(leads.items(), key=lambda pair: -statistics.median(pair[1] or [-99]))
    ]
    return Table(rows, text=("sign", "where", "first fired"))


def lead_of(found: Sequence[Diagnosis], name: str, mode: Mode) -> list[int]:
    """Iterations from the first firing of a sign to the collapse, for each collapsed run where it fired in time."""
    fired = [(one.collapse, _sign(one, name, mode)) for one in found]
    return [c.iteration - s.iterations[0] for c, s in fired if c and s and s.iterations[0] < c.iteration]


def _sign(found: Diagnosis, name: str, mode: Mode) -> Sign | None:
    return next((s for s in found.signs if (s.name, s.mode) == (name, mode)), None)


def _first(found: Sequence[Diagnosis], name: str, mode: Mode) -> str:
    fired = [(one.run, s) for one in found if (s := _sign(one, name, mode))]
    if len(fired) > MOST_NAMED:
        return f"{len(fired)} runs, at {ranges(sorted({s.iterations[0] for _, s in fired}))}"
    return ", ".join(f"{s.iterations[0]} ({run})" if len(found) > 1 else str(s.iterations[0]) for run, s in fired)


def _lead(leads: Sequence[int], found: Sequence[Diagnosis]) -> str:
    collapsed = sum(one.collapse is not None for one in found)
    if not collapsed:
        return NOTHING
    return f"{', '.join(map(str, leads)) or 'none'} (in time in {len(leads)} of {collapsed})"


def _alarms(found: Sequence[Diagnosis], name: str, mode: Mode) -> str:
    """How many iterations of runs without a collapse fired the sign, of all their iterations."""
    whole = [one for one in found if one.collapse is None]
    fired = [s for one in whole if (s := _sign(one, name, mode))]
    if not whole:
        return NOTHING
    return f"{sum(len(s.iterations) for s in fired)} of {sum(one.iterations for one in whole)} iterations"


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers in short form: 1, 4-6 for 1, 4, 5, 6."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
