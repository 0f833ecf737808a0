"""Compares the runs of a study: each cell over its seeds, and every cell with the reference cell.

Cells are compared on the same tasks and seeds, and p-values of several comparisons are Holm's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from internalize.errors import DataError, UserError
from internalize.evaluation.metrics import retained
from internalize.evaluation.stats import (
    Interval,
    Scores,
    Share,
    detectable_difference,
    holm,
    mean_runs,
    paired_difference_runs,
    sign_test,
    won_and_lost,
)
from internalize.records import Record
from internalize.runs.store import first_problem
from internalize.stages.study import Manifest, Member

from .costs import Costs, cell_cost_row, mean_costs
from .run_report import RunReport, load
from .signs import Diagnosis, diagnose
from .text import NOTHING, percent, points, ratio, share

CELL_HEAD = (
    "cell",
    "seeds",
    "starter %",
    "final %",
    "gain, points",
    "with pool, points",
    "best %",
    "retained %",
    "premature",
    "turns",
)
VERSUS_HEAD = ("cell", "final minus reference, points", "won", "lost", "p (Holm)", "seen from", "verdict")
Row = tuple[str, ...]


class Curve(Record):
    """One cell over its seeds: success after each iteration that every seed has finished, 0 = the starter.

    It is that of the policy in force: where the gate rolled back, the one it went back to.
    """

    cell: str
    seeds: int
    internalized: tuple[Interval | None, ...]
    in_context: tuple[Interval | None, ...]
    gain: Interval | None  # last iteration minus the starter
    context_gains: tuple[Interval | None, ...]  # with the pool minus without, paired, iteration by iteration
    retained: Share | None  # after the last iteration
    premature: tuple[float | None, ...]  # after each iteration, no experience in the prompt
    turns: tuple[float | None, ...]
    costs: Costs = Costs()  # mean of the seeds

    @property
    def last(self) -> int:
        """The last iteration."""
        return len(self.internalized) - 1

    @property
    def context_gain(self) -> Interval | None:
        """What the pool in the prompt adds after the last iteration."""
        return self.context_gains[-1]


class Versus(Record):
    """The last common iteration of a cell minus that of the reference cell, paired by task and seed.

    A cell that has another number of iterations by its recipe is compared at its own last one, and one that trains
    nothing by what it does with its pool in the prompt.
    """

    cell: str
    change: Interval
    won: int
    lost: int
    p: float  # exact sign test on tasks, their seeds averaged; Holm-adjusted over the cells
    detectable: float  # stats.detectable_difference for as many comparisons as the study makes

    @property
    def verdict(self) -> str:
        """What may be said."""
        if self.change.excludes_zero and self.p < 0.05:
            return "better" if self.change.mean > 0 else "worse"
        return "not told apart"


class Comparison(Record):
    """A whole study as it stands."""

    question: str
    reference: str
    curves: tuple[Curve, ...]
    versus: tuple[Versus, ...]
    diagnoses: tuple[Diagnosis, ...] = ()  # of every run with a finished iteration
    unfinished: tuple[str, ...]  # cell, seed and what there is of it


class Pair(NamedTuple):
    """The scores that a comparison is made of: reference and cell, one entry a seed."""

    cell: str
    before: Sequence[Scores]
    after: Sequence[Scores]
    change: Interval


def compare(out: Path, resamples: int = 2000) -> Comparison:
    """Read a study's folder. Raises UserError if it holds no study."""
    manifest = _manifest(out)
    runs: dict[str, list[RunReport]] = {}
    unfinished = []
    for member in manifest.members:
        report, state = _read(out / member.folder)
        if state:
            unfinished.append(f"{member.cell}, seed {member.seed} ({state})")
        if report is not None and report.iterations:
            runs.setdefault(member.cell, []).append(report)
    runs = {cell: _finished(reports) for cell, reports in runs.items()}
    curves = tuple(_curve(cell, reports, resamples) for cell, reports in runs.items())
    versus = _versus(runs, manifest.reference, resamples)
    found = [
        diagnose(r, f"{cell}, seed {r.info.seed}") for cell, reports in runs.items() for r in reports if r.finished
    ]
    return Comparison(
        question=manifest.question,
        reference=manifest.reference,
        curves=curves,
        versus=versus,
        diagnoses=tuple(found),
        unfinished=tuple(unfinished),
    )


def _read(path: Path) -> tuple[RunReport | None, str]:
    """A run as far as it can be read, and what there is of it; "" when all of it is there."""
    if not (path / "run.json").exists():
        return None, "not begun"
    try:
        report = load(path)
    except UserError as error:  # one broken file must not hide the other runs
        return None, f"cannot be read: {error}"
    return report, "" if report.finished >= report.planned else f"{report.finished} of {report.planned} iterations"


def members(out: Path) -> tuple[Member, ...]:
    """The runs of a study that have begun. Raises UserError if the folder holds no study."""
    return tuple(m for m in _manifest(out).members if (out / m.folder / "run.json").exists())


def _manifest(out: Path) -> Manifest:
    file = out / "study.json"
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{out}: not a study (no study.json)") from error
    except ValidationError as error:
        raise DataError(f"{file}: {first_problem(error)}") from error


def _finished(reports: list[RunReport]) -> list[RunReport]:
    """Those that are finished, if any are: a seed that has only begun must not hide what the others show."""
    return [report for report in reports if report.finished >= report.planned] or reports


def _curve(cell: str, reports: Sequence[RunReport], resamples: int) -> Curve:
    last = min(max(i.number for i in report.iterations) for report in reports)
    inforce = [[(report, report.kept_at(k)) for report in reports] for k in range(last + 1)]
    plain = [[report.scores(kept) for report, kept in row] for row in inforce]
    pooled = [[report.scores(kept, "in_context") for report, kept in row] for row in inforce]
    lines = [[report.line(report.suite, "internalized", kept) for report, kept in row] for row in inforce]
    ends = [(report.results, kept) for report, kept in inforce[last] if kept]
    measured = [[line for line in row if line and line.results] for row in lines]
    return Curve(
        cell=cell,
        seeds=len(reports),
        internalized=tuple(mean_runs(runs, resamples) for runs in plain),
        in_context=tuple(mean_runs(runs, resamples) for runs in pooled),
        gain=paired_difference_runs(plain[0], plain[last], resamples) if last else None,
        context_gains=tuple(paired_difference_runs(*both, resamples) for both in zip(plain, pooled, strict=True)),
        retained=retained(ends, reports[0].suite, resamples),
        premature=tuple(_mean([line.premature_rate for line in row]) if row else None for row in measured),
        turns=tuple(_mean([line.turns for line in row]) if row else None for row in measured),
        costs=mean_costs(reports),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _versus(runs: Mapping[str, Sequence[RunReport]], reference: str, resamples: int) -> tuple[Versus, ...]:
    pairs = [pair for cell in runs if cell != reference and (pair := _pair(runs, cell, reference, resamples))]
    found = [_against(pair, len(pairs), resamples) for pair in pairs]
    adjusted = holm([v.p for v in found])
    return tuple(v.model_copy(update={"p": p}) for v, p in zip(found, adjusted, strict=True))


def _pair(runs: Mapping[str, Sequence[RunReport]], cell: str, reference: str, resamples: int) -> Pair | None:
    """Scores seed by seed; None where the two have nothing to be compared by."""
    ours, theirs = ({r.info.seed: r for r in runs.get(name, ())} for name in (cell, reference))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None
    old_last, new_last = _ends([theirs[seed] for seed in seeds], [ours[seed] for seed in seeds])
    if not (old_last and new_last):
        return None  # the starter against itself says nothing
    mode = ours[seeds[0]].mode
    before = [theirs[seed].scores(theirs[seed].kept_at(old_last), theirs[seed].mode) for seed in seeds]
    after = [ours[seed].scores(ours[seed].kept_at(new_last), mode) for seed in seeds]
    change = paired_difference_runs(before, after, resamples)
    name = cell if mode == "internalized" else f"{cell} (with pool)"
    return None if change is None else Pair(name, before, after, change)


def _against(pair: Pair, comparisons: int, resamples: int) -> Versus:
    won, lost = won_and_lost(_over_seeds(pair.before), _over_seeds(pair.after))
    return Versus(
        cell=pair.cell,
        change=pair.change,
        won=won,
        lost=lost,
        p=sign_test(won, lost),
        detectable=detectable_difference(pair.before, pair.after, comparisons, resamples),
    )


def _ends(theirs: Sequence[RunReport], ours: Sequence[RunReport]) -> tuple[int, int]:
    """The last iteration that both sides have finished; of cells of other lengths each one's own last."""
    ends = [min(max(i.number for i in report.iterations) for report in side) for side in (theirs, ours)]
    same = len({report.planned for report in (*theirs, *ours)}) == 1
    return (min(ends), min(ends)) if same else (ends[0], ends[1])


def _over_seeds(runs: Sequence[Scores]) -> dict[str, float | None]:
    """Mean score of each task over the seeds that scored it: tasks, not episodes, are what is sampled."""
    tasks = {task: None for run in runs for task in run}
    scored = {task: [s for run in runs if (s := run.get(task)) is not None] for task in tasks}
    return {task: _mean(values) if values else None for task, values in scored.items()}


def cell_rows(comparison: Comparison) -> list[Row]:
    """One row under CELL_HEAD for each cell that has begun."""
    return [_cell_row(curve) for curve in comparison.curves]


def _cell_row(curve: Curve) -> Row:
    best = max((i.mean for i in curve.internalized if i), default=None)
    return (
        curve.cell,
        str(curve.seeds),
        percent(curve.internalized[0]),
        percent(curve.internalized[-1]) if curve.last else NOTHING,
        points(curve.gain),
        points(curve.context_gain),
        share(best),
        ratio(curve.retained),
        share(curve.premature[-1]),
        NOTHING if (turns := curve.turns[-1]) is None else f"{turns:.1f}",
    )


def cell_cost_rows(comparison: Comparison) -> list[Row]:
    """One row under CELL_COST_HEAD for each cell that has begun."""
    return [cell_cost_row(curve.cell, curve.costs) for curve in comparison.curves]


def versus_rows(comparison: Comparison) -> list[Row]:
    """One row under VERSUS_HEAD for each cell that can be compared with the reference."""
    return [
        (
            v.cell,
            points(v.change),
            str(v.won),
            str(v.lost),
            f"{v.p:.3f}" if v.p >= 0.001 else "< 0.001",
            f"{100 * v.detectable:.0f} points",
            v.verdict,
        )
        for v in comparison.versus
    ]


def iteration_rows(comparison: Comparison) -> tuple[Row, list[Row]]:
    """Head and rows: success of every cell and mode at every iteration, %."""
    longest = max((curve.last for curve in comparison.curves), default=0)
    head = ("cell", "mode", "starter", *(str(k) for k in range(1, longest + 1)))
    rows = []
    for curve in comparison.curves:
        for mode, intervals in (("without", curve.internalized), ("with pool", curve.in_context)):
            cells = [f"{100 * i.mean:.1f}" if i else NOTHING for i in intervals]
            rows.append((curve.cell, mode, *cells, *[""] * (longest + 1 - len(cells))))
    return head, rows
