"""Compares the runs of a study: each cell over its seeds, and every cell with the reference cell.

Cells are compared on the same tasks and seeds, and p-values of several comparisons are Holm's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean

from internalize.errors import UserError
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
from internalize.records import Mode, Record
from internalize.runs.readers import record
from internalize.runs.store import RUN
from internalize.stages.study import STUDY, Manifest, Member

from .costs import Costs
from .effects import Effect, effects
from .paired import Paired, over_runs
from .run_report import RunReport, load
from .signs import Diagnosis, diagnose


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


class Versus(Paired):
    """A cell minus the reference cell, paired by task and seed, after iteration `at`; 0 = the last that both have.

    A cell that has fewer iterations by its recipe is compared at its own last one, and one that trains nothing by what
    it does with its pool in the prompt.
    """

    cell: str
    at: int = 0
    won: int
    lost: int
    detectable: float  # stats.detectable_difference for as many comparisons as the study makes


class FinalSuite(Record):
    """A cell on a suite that was measured only before the first and after the last iteration, over its seeds."""

    suite: str
    cell: str
    seeds: int
    starter: Interval | None
    final: Interval | None
    in_context: Interval | None  # with the pool
    change: Interval | None = None  # minus the reference, paired by task and seed; None for the reference itself
    p: float | None = None  # exact sign test over tasks, adjusted by Holm's method over the cells on this suite


class Comparison(Record):
    """A whole study as it stands."""

    question: str
    reference: str
    curves: tuple[Curve, ...]
    versus: tuple[Versus, ...]
    effects: tuple[Effect, ...] = ()  # of the axes of a grid
    finals: tuple[FinalSuite, ...] = ()
    diagnoses: tuple[Diagnosis, ...] = ()  # of every run with a finished iteration
    unfinished: tuple[tuple[str, int, str], ...]  # cell, seed and what there is of it
    runs: tuple[tuple[str, str], ...] = ()  # cell and seed of each that has begun, and its page in the study's folder

    @property
    def at_the_end(self) -> tuple[Versus, ...]:
        """The comparisons after the latest iteration at which there are any."""
        latest = max((one.at for one in self.versus), default=0)
        return tuple(one for one in self.versus if one.at == latest)

    @property
    def missing(self) -> str:
        """Which runs are missing; "" if none is."""
        seeds: dict[tuple[str, str], list[int]] = {}
        for cell, seed, state in self.unfinished:
            seeds.setdefault((cell, state), []).append(seed)
        named = "; ".join(f"{cell}, {_seeds(of)} ({state})" for (cell, state), of in seeds.items())
        return f"Not finished ({len(self.unfinished)}): {named}." if named else ""


def compare(out: Path, resamples: int = 2000) -> Comparison:
    """Read a study's folder. Raises UserError if it holds no study."""
    manifest = _manifest(out)
    runs: dict[str, list[RunReport]] = {}
    unfinished = []
    for member in manifest.members:
        report, state = _read(out / member.folder)
        if state:
            unfinished.append((member.cell, member.seed, state))
        if report is not None and report.iterations:
            runs.setdefault(member.cell, []).append(report)
    runs = {cell: _finished(reports) for cell, reports in runs.items()}
    curves = tuple(_curve(cell, reports, resamples) for cell, reports in runs.items())
    asked = manifest.compare_at or (0,)
    versus = tuple(one for at in asked for one in _versus(runs, manifest.reference, resamples, at))
    found = [
        diagnose(r, f"{cell}, seed {r.info.seed}") for cell, reports in runs.items() for r in reports if r.finished
    ]
    return Comparison(
        question=manifest.question,
        reference=manifest.reference,
        curves=curves,
        versus=versus,
        finals=tuple(_finals(runs, manifest.reference, resamples)),
        effects=effects(manifest, runs, min((curve.last for curve in curves), default=0), resamples),
        diagnoses=tuple(found),
        unfinished=tuple(unfinished),
        runs=tuple((f"{m.cell}, seed {m.seed}", _page_of(out, m)) for m in members(out)),
    )


def _seeds(numbers: Sequence[int]) -> str:
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def _page_of(out: Path, member: Member) -> str:
    page = f"{member.folder}/report.html"
    return page if (out / page).exists() else ""


def _read(path: Path) -> tuple[RunReport | None, str]:
    """A run as far as it can be read, and what there is of it; "" when all of it is there."""
    if not (path / RUN).exists():
        return None, "not begun"
    try:
        report = load(path)
    except UserError as error:  # one broken file must not hide the other runs
        return None, f"cannot be read: {error}"
    return report, "" if report.finished >= report.planned else f"{report.finished} of {report.planned} iterations"


def members(out: Path) -> tuple[Member, ...]:
    """The runs of a study that have begun. Raises UserError if the folder holds no study."""
    return tuple(m for m in _manifest(out).members if (out / m.folder / RUN).exists())


def _manifest(out: Path) -> Manifest:
    found = record(out / STUDY, Manifest)
    if found is None:
        raise UserError(f"{out}: not a study (no {STUDY})")
    return found


def _finished(reports: list[RunReport]) -> list[RunReport]:
    """Those that are finished, if any are: a seed that has only begun must not hide what the others show."""
    return [report for report in reports if report.finished >= report.planned] or reports


def _curve(cell: str, reports: Sequence[RunReport], resamples: int) -> Curve:
    last = min(report.last_measured for report in reports)
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
        premature=tuple(fmean(line.premature_rate for line in row) if row else None for row in measured),
        turns=tuple(fmean(line.turns for line in row) if row else None for row in measured),
        costs=Costs.mean([Costs.total(i.costs for i in report.iterations) for report in reports]),
    )


def _finals(runs: Mapping[str, Sequence[RunReport]], reference: str, resamples: int) -> Iterator[FinalSuite]:
    """Every cell whose runs are finished on every final suite, and its difference from the reference."""
    done = {cell: [r for r in reports if r.finished >= r.planned] for cell, reports in runs.items()}
    suites = dict.fromkeys(suite for reports in done.values() for r in reports for suite in r.settings.final)
    for suite in suites:
        rows = [_final(cell, reports, suite, resamples) for cell, reports in done.items() if reports]
        theirs = {r.info.seed: _ended(r, suite) for r in done.get(reference, ())}
        compared: list[tuple[FinalSuite, Interval, tuple[int, int]]] = []
        for row in rows:
            ours = {r.info.seed: _ended(r, suite) for r in done[row.cell] if r.info.seed in theirs}
            pairs = [theirs[seed] for seed in ours], [*ours.values()]
            if row.cell != reference and ours and (change := paired_difference_runs(*pairs, resamples)):
                compared.append((row, change, won_and_lost(*map(over_runs, pairs))))
            else:
                yield row
        adjusted = holm([sign_test(*counts) for _, _, counts in compared])
        for (row, change, _), p in zip(compared, adjusted, strict=True):
            yield row.model_copy(update={"change": change, "p": p})


def _final(cell: str, reports: Sequence[RunReport], suite: str, resamples: int) -> FinalSuite:
    return FinalSuite(
        suite=suite,
        cell=cell,
        seeds=len(reports),
        starter=mean_runs([r.scores(0, suite=suite) for r in reports], resamples),
        final=mean_runs([_ended(r, suite) for r in reports], resamples),
        in_context=mean_runs([_ended(r, suite, "in_context") for r in reports], resamples),
    )


def _ended(report: RunReport, suite: str, mode: Mode = "internalized") -> Scores:
    """Each task of the suite with the policy that the run ended with."""
    return report.scores(report.kept_at(report.last_measured), mode, suite)


def _versus(runs: Mapping[str, Sequence[RunReport]], reference: str, resamples: int, at: int) -> tuple[Versus, ...]:
    """Every cell against the reference, after iteration `at`; 0 = the last that both have finished."""
    pairs = [pair for cell in runs if cell != reference and (pair := _paired(runs, cell, reference, at))]
    compared = [
        (cell, before, after, change)
        for cell, before, after in pairs
        if (change := paired_difference_runs(before, after, resamples))
    ]
    counts = [won_and_lost(over_runs(before), over_runs(after)) for _, before, after, _ in compared]
    adjusted = holm([sign_test(*count) for count in counts])
    return tuple(
        Versus(
            cell=cell,
            at=at,
            change=change,
            won=won,
            lost=lost,
            p=p,
            detectable=detectable_difference(before, after, len(compared), resamples),
        )
        for (cell, before, after, change), (won, lost), p in zip(compared, counts, adjusted, strict=True)
    )


def _paired(
    runs: Mapping[str, Sequence[RunReport]], cell: str, reference: str, at: int
) -> tuple[str, list[Scores], list[Scores]] | None:
    """Scores of the reference and of a cell, seed by seed; None where the two have nothing to be compared by."""
    ours, theirs = ({r.info.seed: r for r in runs.get(name, ())} for name in (cell, reference))
    both = [(theirs[seed], ours[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if at:
        both = [pair for pair in both if all(r.last_measured >= min(at, r.planned) for r in pair)]
    if not both:
        return None
    ends = [min(min(at or r.planned, r.planned, r.last_measured) for r in side) for side in zip(*both, strict=True)]
    if len({report.planned for pair in both for report in pair}) == 1:
        ends = [min(ends)] * 2  # the last iteration that both have finished; of other lengths each one's own last
    if not all(ends):
        return None  # the starter against itself says nothing
    mode = both[0][1].mode
    before: list[Scores] = [report.scores(report.kept_at(ends[0]), report.mode) for report, _ in both]
    after: list[Scores] = [report.scores(report.kept_at(ends[1]), mode) for _, report in both]
    return cell if mode == "internalized" else f"{cell} (with pool)", before, after
