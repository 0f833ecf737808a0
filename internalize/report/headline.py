"""The one honest sentence: what a run changed from the starter to the final policy, and how sure that is.

Left out: every number that is not needed to judge the change. What must not change: "rose" and "fell"
are said only when the paired interval excludes zero and the exact sign test agrees at 0.05; what
limits the result (one seed, few tasks, an unfinished or rolled-back run) is said in the same breath.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from internalize.evaluation.stats import Interval, minimum_detectable, paired_difference_runs, sign_test, won_and_lost

from .run_report import IterationReport, RunReport
from .signs import diagnose
from .text import change_words

FEW_TASKS = 200  # below it, what could be detected at all is said
SURE = 0.05


def summary(report: RunReport, *more: RunReport) -> str:
    """The sentence on one run, or on several runs of one recipe with different seeds."""
    reports = (report, *more)
    unfinished = next((r for r in reports if r.final is None), None)
    if unfinished is not None:
        return _nothing_yet(unfinished)
    before = [r.scores(0) for r in reports]
    after = [r.scores(r.final.number if r.final else 0) for r in reports]
    change = paired_difference_runs(before, after, report.resamples, report.info.seed)
    if change is None:
        return (
            f"On {report.suite}, no task has a score from both the starter and the final policy: nothing can be said."
        )
    p = _p_value(before, after)
    return " ".join(
        [
            _change(report, before, after, change, p),
            *(_collapse(report) if not more else ()),
            *(_pool(report) if not more else ()),
            *_limits(reports, change, before),
        ]
    )


def _p_value(before: Sequence[Mapping[str, float | None]], after: Sequence[Mapping[str, float | None]]) -> float | None:
    """Exact p of a single run; several runs share their tasks, which the test does not allow for."""
    return sign_test(*won_and_lost(before[0], after[0])) if len(before) == 1 else None


def _change(
    report: RunReport,
    before: Sequence[Mapping[str, float | None]],
    after: Sequence[Mapping[str, float | None]],
    change: Interval,
    p: float | None,
) -> str:
    old, new = _paired_mean(before, after), _paired_mean(after, before)
    final = report.final.number if report.final else 0
    agrees = p is None or p < SURE
    verb = ("rose" if change.mean > 0 else "fell") if change.excludes_zero and agrees else "went"
    verdict = "excludes zero" if change.excludes_zero else "includes zero, so no change is shown"
    if change.excludes_zero and not agrees:
        verdict = "excludes zero but the exact test does not agree, so no change is shown"
    exact = "" if p is None else f", exact sign test p {_p_text(p)}"
    return (
        f"On {report.suite}, success without experience in the prompt {verb} from {100 * old:.1f} % (starter) to "
        f"{100 * new:.1f} % (iteration {final} of {report.planned or report.finished}), {change_words(change)}, "
        f"paired over n = {change.n} tasks{exact}; the interval {verdict}."
    )


def _p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"


def _paired_mean(of: Sequence[Mapping[str, float | None]], other: Sequence[Mapping[str, float | None]]) -> float:
    """Mean over runs and tasks scored on both sides, so that it fits the paired difference."""
    means = []
    for mine, theirs in zip(of, other, strict=True):
        scored = [score for task, score in mine.items() if score is not None and theirs.get(task) is not None]
        if scored:
            means.append(sum(scored) / len(scored))
    return sum(means) / len(means)


def _collapse(report: RunReport) -> list[str]:
    found = diagnose(report).collapse
    if found is None:
        return []
    best = report.line(report.suite, "internalized", found.best)
    reached = f" ({100 * best.success.mean:.1f} %)" if best and best.success else ""
    fell = f"it fell below that of iteration {found.best}{reached} and stayed below"
    return [f"From iteration {found.iteration} on {fell}: a collapse."]


def _pool(report: RunReport) -> list[str]:
    final = report.final
    line = final.in_context if final else None
    if line is None or line.success is None:
        return ["Whether the pool in the prompt still helps was not measured."]
    reached = f"With the pool in the prompt the final policy reaches {100 * line.success.mean:.1f} %"
    gain = line.in_context_gain
    if gain is None:
        return [f"{reached}."]
    if not gain.excludes_zero:
        return [f"{reached}: {change_words(gain)}, no difference shown."]
    return [f"{reached}: {change_words(gain)}, so the pool still {'helps' if gain.mean > 0 else 'does harm'}."]


def _limits(reports: Sequence[RunReport], change: Interval, before: Sequence[Mapping[str, float | None]]) -> list[str]:
    said = []
    if len(reports) == 1:
        said.append("One seed: the variation between runs is not measured.")
    if change.n < FEW_TASKS:
        scored = [score for run in before for score in run.values() if score is not None]
        least = 100 * minimum_detectable(change.n, sum(scored) / len(scored))
        said.append(f"With {change.n} tasks, changes below about {least:.0f} points are easily missed.")
    if change.left_out:
        said.append(f"{change.left_out} tasks were left out because a side is unscored.")
    return said + [text for report in reports for text in _state(report)]


def _state(report: RunReport) -> list[str]:
    said = []
    if report.finished < report.planned:
        said.append(f"The run is not finished: {report.finished} of {report.planned} iterations.")
    if report.gated:
        said.append(f"The gate chose by {report.suite}: only a suite that chose nothing can report the final policy.")
    dropped = [str(i.number) for i in report.iterations if i.decision is not None and not i.decision.promote]
    if dropped:
        said.append(f"Rolled back by the gate: iteration {', '.join(dropped)}.")
    return said


def _nothing_yet(report: RunReport) -> str:
    if report.finished:
        return f"None of the {report.finished} finished iterations was kept by the gate: the starter is the policy."
    return f"No iteration has finished yet: nothing can be said about learning.{_starter(report.starter)}"


def _starter(starter: IterationReport | None) -> str:
    line = starter.internalized if starter else None
    if line is None or line.success is None:
        return ""
    return f" The starter solves {100 * line.success.mean:.1f} % of {line.success.n} tasks of {line.suite}."
