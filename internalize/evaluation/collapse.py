"""Detects a collapse: a loss of success from which the run never recovers.

A collapse is the first kept iteration whose success without experience is significantly below that of the best kept
iteration before it, provided that all later kept iterations are too. Significant means that both the paired interval
and the exact sign test show the loss.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from internalize.records import Record

from .stats import Interval, Scores, paired_difference, sign_test, won_and_lost

SURE = 0.05


class Collapse(Record):
    """Success fell at `iteration` and did not recover; `change` is the difference from iteration `best`."""

    iteration: int
    best: int
    change: Interval


def collapse(scores: Sequence[tuple[int, Scores]], resamples: int = 2000) -> Collapse | None:
    """The collapse in a sequence of (iteration, success of each task); None if there is none."""
    for place in range(1, len(scores)):
        best, before = max(scores[:place], key=lambda pair: _mean(pair[1]))  # the first one if several are equal
        changes = [_significant_loss(before, after, resamples) for _, after in scores[place:]]
        if changes[0] is not None and all(changes):
            return Collapse(iteration=scores[place][0], best=best, change=changes[0])
    return None


def _mean(scores: Scores) -> float:
    scored = [score for score in scores.values() if score is not None]
    return statistics.fmean(scored) if scored else -1.0


def _significant_loss(before: Scores, after: Scores, resamples: int) -> Interval | None:
    """The change if it is a significant loss, else None."""
    change = paired_difference(before, after, resamples)
    is_loss = change is not None and change.high < 0 and sign_test(*won_and_lost(before, after)) < SURE
    return change if is_loss else None
