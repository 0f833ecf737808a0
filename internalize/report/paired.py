"""What a study says of two sides that are paired by task and seed."""

from __future__ import annotations

from collections.abc import Sequence

from internalize.evaluation.stats import Interval, Scores, task_means
from internalize.records import Record

SURE = 0.05


class Paired(Record):
    """A difference, and the exact sign test over tasks, adjusted by Holm's method for those made with it."""

    change: Interval
    p: float

    @property
    def verdict(self) -> str:
        """What may be said: interval and test must agree."""
        if self.change.excludes_zero and self.p < SURE:
            return "better" if self.change.mean > 0 else "worse"
        return "not told apart"


def over_runs(runs: Sequence[Scores]) -> Scores:
    """Mean score of each task over the runs that scored it: tasks, not episodes, are what is sampled."""
    return task_means((task, score) for run in runs for task, score in run.items())
