"""Whether a new checkpoint is kept: compare it with an earlier one, on the same tasks, without experience.

Left out: how to roll back (the loop does it). What must not change: a result in the in-context mode
never decides, and too few tasks never roll back: noise of small suites is as large as real effects.
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
    """What the gate said. `interval`: after minus before, None when no task was scored in both.

    `rival`: the iteration it was compared with. `first`: what was said of the first candidate, when this is about a
    second one.
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

    'always' promotes; the other rules do not when the paired 95 % interval lies wholly below zero and the exact sign
    test agrees: the interval alone calls four tasks lost and none won a loss, which is one chance in eight.
    """
    change = paired_difference(_internalized(before), _internalized(after), resamples, seed)
    if rule == "always":
        return Decision(promote=True, reason="rule 'always'", interval=change)
    if change is None or change.n < LEAST_TASKS:
        paired = change.n if change else 0
        return Decision(promote=True, reason=f"{paired} paired tasks cannot show a loss", interval=change)
    found = f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] on {change.n} tasks"
    p = sign_test(*won_and_lost(_internalized(before), _internalized(after)))
    if change.high < 0 and p < LEVEL:
        return Decision(promote=False, reason=f"worse: {found}, p = {p:.3f}", interval=change)
    return Decision(promote=True, reason=f"no worse beyond chance: {found}, p = {p:.3f}", interval=change)


def _internalized(results: Sequence[EvalResult]) -> dict[str, float | None]:
    return by_task(result for result in results if result.mode == "internalized")
