"""A collapse: success that fell for good.

It is the first kept iteration whose success without experience is worse than that of the best kept iteration before
it, by the paired interval and the exact sign test together, if every later kept iteration is worse than that one too.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from internalize.records import Record

from .stats import Interval, Scores, paired_difference, sign_test, won_and_lost

SURE = 0.05


class Collapse(Record):
    """Success fell for good at `iteration`, from its best at `best`; `change` is between the two."""

    iteration: int
    best: int
    change: Interval


def collapse(scores: Sequence[tuple[int, Scores]], resamples: int = 2000) -> Collapse | None:
    """The collapse among (iteration, success of each task), in order; None if success never fell for good."""
    for place in range(1, len(scores)):
        best, before = max(scores[:place], key=lambda pair: _mean(pair[1]))  # of equals the first
        changes = [_loss(before, after, resamples) for _, after in scores[place:]]
        if changes[0] is not None and all(changes):
            return Collapse(iteration=scores[place][0], best=best, change=changes[0])
    return None


def _mean(scores: Scores) -> float:
    scored = [score for score in scores.values() if score is not None]
    return statistics.fmean(scored) if scored else -1.0


def _loss(before: Scores, after: Scores, resamples: int) -> Interval | None:
    """The change if it is a loss beyond doubt, else None."""
    change = paired_difference(before, after, resamples)
    sure = change is not None and change.high < 0 and sign_test(*won_and_lost(before, after)) < SURE
    return change if sure else None
