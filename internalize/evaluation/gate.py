"""Decides whether a new checkpoint is promoted, by comparing it with an earlier one on the same tasks.

Only results without experience count. Too few tasks never cause a rollback, because the noise of small suites is as
large as real effects.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from internalize.records import EvalResult, Record

from .metrics import by_task
from .stats import LEAST_TASKS, Interval, paired_difference, sign_test, won_and_lost

Rule = Literal["always", "no_worse", "retry", "average", "confirm"]
LEVEL = 0.05  # of the exact sign test
LOST = 2 / 3  # what 'confirm' calls worse: of the tasks whose success changed, so many were lost
MISSED = 0.1  # highest chance that 'confirm' keeps such a checkpoint, if there are tasks enough


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

    The rule 'always' promotes. 'confirm' promotes unless the mean is lower; `worse` then decides on further tasks. The
    other rules keep the old checkpoint if the paired 95 % interval lies below zero and the exact sign test is
    significant too. The interval alone is not enough: it already excludes zero for four tasks lost and none won, whose
    exact p-value is 1/8.
    """
    change = paired_difference(_internalized(before), _internalized(after), resamples, seed)
    if rule == "always":
        return Decision(promote=True, reason="rule 'always'", interval=change)
    if change is None or change.n < LEAST_TASKS:
        paired = change.n if change else 0
        return Decision(promote=True, reason=f"{paired} paired tasks cannot show a loss", interval=change)
    difference = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] on {change.n} tasks"
    if rule == "confirm":
        lower = change.mean < 0
        return Decision(promote=not lower, reason=f"{'lower' if lower else 'not lower'}: {difference}", interval=change)
    p = sign_test(*won_and_lost(_internalized(before), _internalized(after)))
    if change.high < 0 and p < LEVEL:
        return Decision(promote=False, reason=f"worse: {difference}, p = {p:.3f}", interval=change)
    return Decision(promote=True, reason=f"no significant loss: {difference}, p = {p:.3f}", interval=change)


def worse(won: int, lost: int, error: float) -> bool | None:
    """Whether a checkpoint is worse, after so many tasks were won and lost against its rival; None = not known yet.

    Wald's (1945) sequential test of "half of the tasks that change are lost" against "`LOST` of them are". It may be
    asked after every task: the chance that it ever says True of a checkpoint that is no worse is at most `error`, and
    that it ever says False of one that loses as many is at most `MISSED` (Ville's inequality, so no approximation).
    """
    ratio = lost * math.log(2 * LOST) + won * math.log(2 * (1 - LOST))  # log of the likelihoods' ratio
    if ratio >= math.log(1 / error):
        return True
    return False if ratio <= math.log(MISSED) else None


def _internalized(results: Sequence[EvalResult]) -> dict[str, float | None]:
    return by_task(result for result in results if result.mode == "internalized")
