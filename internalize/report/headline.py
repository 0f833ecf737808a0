"""Summarizes a run in a few sentences: the change from the starter to the final policy, and how sure it is.

"rose" and "fell" are written only if the paired interval excludes zero and the exact sign test agrees at 0.05. Limits
of the result (one seed, few tasks, an unfinished or rolled-back run) follow the sentence.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from internalize.evaluation.stats import (
    Interval,
    Scores,
    minimum_detectable,
    paired_difference_runs,
    sign_test,
    won_and_lost,
)

from .run_report import RunReport
from .signs import diagnose
from .text import change_words, equals

FEW_TASKS = 200  # with fewer tasks, the detectable difference is stated
SURE = 0.05
ONE_SEED = "One seed: the variation between runs is not measured."


def summary(report: RunReport, *more: RunReport) -> str:
    """The sentences on one run, or on several runs of one recipe with different seeds."""
    reports = (report, *more)
    unfinished = next((r for r in reports if r.final is None), None)
    if unfinished is not None:
        return _nothing_yet(unfinished)
    before = [r.scores(0) for r in reports]
    after = [r.scores(r.final.number) for r in reports if r.final]
    change = paired_difference_runs(before, after, report.settings.resamples, report.info.seed)
    if change is None:
        return (
            f"On {report.suite}, no task has a score from both the starter and the final policy: nothing can be said."
        )
    of_one = (
        () if more else (*_collapse(report), _pool(report), "One seed: the variation between runs is not measured.")
    )
    return " ".join([_change(report, before, after, change), *of_one, *_limits(reports, change, before)])


def verdict_line(report: RunReport) -> str:
    """One line with the verdict of each suite on the final policy; "" before there is one."""
    final = report.final.number if report.final else 0
    suites = (report.suite, *(suite for suite in report.settings.final if suite != report.suite))
    lines = [(suite, report.line(suite, "internalized", final)) for suite in suites] if final else []
    gains = {suite: line.gain_over_starter for suite, line in lines if line and line.gain_over_starter}
    words = {suite: _word(gain) for suite, gain in gains.items()}
    differ = len(set(words.values())) > 1
    text = "; ".join(f"{suite}: {word} ({100 * gains[suite].mean:+.1f} points)" for suite, word in words.items())
    return f"{text}{'. The suites disagree: believe the one that chose nothing' if differ else ''}." if text else ""


def _word(gain: Interval) -> str:
    return ("better" if gain.mean > 0 else "worse") + " than the starter" if gain.excludes_zero else "no change shown"


def _change(report: RunReport, before: Sequence[Scores], after: Sequence[Scores], change: Interval) -> str:
    """The change in success. Several runs get no p-value, because the exact test does not allow for shared tasks."""
    p = sign_test(*won_and_lost(before[0], after[0])) if len(before) == 1 else None
    agrees = p is None or p < SURE
    verb = ("rose" if change.mean > 0 else "fell") if change.excludes_zero and agrees else "went"
    verdict = "excludes zero" if change.excludes_zero else "includes zero, so no change is shown"
    if change.excludes_zero and not agrees:
        verdict = "excludes zero but the exact test does not agree, so no change is shown"
    old, new, final = (
        _paired_mean(before, after),
        _paired_mean(after, before),
        report.final.number if report.final else 0,
    )
    return (
        f"On {report.suite}, success without experience in the prompt {verb} from {100 * old:.1f} % (starter) to "
        f"{100 * new:.1f} % (iteration {final} of {report.planned or report.finished}), {change_words(change)}, paired "
        f"over n = {change.n} tasks{'' if p is None else f', exact sign test p {equals(p)}'}; the interval {verdict}."
    )


def _paired_mean(of: Sequence[Scores], other: Sequence[Scores]) -> float:
    """Mean over runs and tasks scored on both sides, so that it fits the paired difference."""
    both = [
        [score for task, score in mine.items() if score is not None and theirs.get(task) is not None]
        for mine, theirs in zip(of, other, strict=True)
    ]
    return fmean(fmean(scored) for scored in both if scored)


def _collapse(report: RunReport) -> Iterator[str]:
    found = diagnose(report).collapse
    if found is not None:
        best = report.line(report.suite, "internalized", found.best)
        reached = f" ({100 * best.success.mean:.1f} %)" if best and best.success else ""
        fell = f"it fell below that of iteration {found.best}{reached} and stayed below"
        yield f"From iteration {found.iteration} on {fell}: a collapse."


def _pool(report: RunReport) -> str:
    line = report.final.in_context if report.final else None
    if line is None or line.success is None:
        return "Whether the pool in the prompt still helps was not measured."
    gain, judged = line.in_context_gain, ""
    if gain is not None:
        helps = f"so the pool still {'helps' if gain.mean > 0 else 'does harm'}"
        judged = f": {change_words(gain)}, {helps if gain.excludes_zero else 'no difference shown'}"
    return f"With the pool in the prompt the final policy reaches {100 * line.success.mean:.1f} %{judged}."


def _limits(reports: Sequence[RunReport], change: Interval, before: Sequence[Scores]) -> Iterator[str]:
    if change.n < FEW_TASKS:
        starter = fmean(score for run in before for score in run.values() if score is not None)
        least = 100 * minimum_detectable(change.n, starter)
        yield f"With {change.n} tasks, changes below about {least:.0f} points are easily missed."
    if change.left_out:
        yield f"{change.left_out} tasks were left out because a side is unscored."
    for report in reports:
        if report.finished < report.planned:
            yield f"The run is not finished: {report.finished} of {report.planned} iterations."
        if report.gated:
            yield f"The gate chose by {report.suite}: only a suite that chose nothing can report the final policy."
        if undone := [str(i.number) for i in report.iterations if i.undone]:
            yield f"Rolled back by the gate: iteration {', '.join(undone)}."


def _nothing_yet(report: RunReport) -> str:
    if report.finished and report.last_measured:
        return f"None of the {report.finished} finished iterations was kept by the gate: the starter is the policy."
    line = report.starter.internalized if report.starter else None
    yet = "been measured" if report.finished else "finished"
    nothing = f"No iteration has {yet} yet: nothing can be said about learning."
    if line is None or line.success is None:
        return nothing
    return f"{nothing} The starter solves {100 * line.success.mean:.1f} % of {line.success.n} tasks of {line.suite}."
