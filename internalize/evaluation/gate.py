"""Decides whether a new checkpoint is promoted, by comparing it with an earlier one on the same tasks.

Only results without experience count. Too few tasks never cause a rollback, because the noise of small suites is as
large as real effects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from internalize.records import EvalResult, Record

from .metrics import by_task
from .stats import LEAST_TASKS, Interval, paired_difference, sign_test, won_and_lost

Rule = Literal["always", "no_worse", "retry", "average"]
LEVEL = 0.05  # of the exact sign test


class Decision(Record):
    """The decision of the gate. `interval`: success after minus before, None if no task was scored in both.

    `rival`: the iteration that the checkpoint was compared with. `first`: the decision about the first candidate, if
    this one is about a second candidate.
    """

    promote: bool
    reason: str
    interval: Interval | None
    rival: int | None = None
    first: Decision | None = None


def decide(
    before: Sequence[EvalResult], after: Sequence[EvalResult], rule: Rule, resamples: int = 2000, seed: int = 0
) -> Decision:
    """Promote the checkpoint of `after`, or keep that of `before`, by their internalized results.

    The rule 'always' promotes. The other rules keep the old checkpoint if the paired 95 % interval lies below zero and
    the exact sign test is significant too. The interval alone is not enough: it already excludes zero for four tasks
    lost and none won, whose exact p-value is 1/8.
    """
    change = paired_difference(_internalized(before), _internalized(after), resamples, seed)
    if rule == "always":
        return Decision(promote=True, reason="rule 'always'", interval=change)
    if change is None or change.n < LEAST_TASKS:
        paired = change.n if change else 0
        return Decision(promote=True, reason=f"{paired} paired tasks cannot show a loss", interval=change)
    difference = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] on {change.n} tasks"
    p = sign_test(*won_and_lost(_internalized(before), _internalized(after)))
    if change.high < 0 and p < LEVEL:
        return Decision(promote=False, reason=f"worse: {difference}, p = {p:.3f}", interval=change)
    return Decision(promote=True, reason=f"no significant loss: {difference}, p = {p:.3f}", interval=change)


def _internalized(results: Sequence[EvalResult]) -> dict[str, float | None]:
    return by_task(result for result in results if result.mode == "internalized")
