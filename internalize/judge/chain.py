"""Judges one after another, cheap ones first.

What must not change: a judge is asked only if no earlier one accepted, and if none accepts the last one decides, so
that its failure leaves the answer unscored.
"""

from __future__ import annotations

from collections.abc import Sequence

from internalize.interfaces import Judge
from internalize.records import Claim, Judgement


class ChainJudge:
    """The first acceptance of `judges`, or else the verdict of the last."""

    def __init__(self, judges: Sequence[Judge]) -> None:
        if not judges:
            raise ValueError("a chain needs a judge")
        self._judges = tuple(judges)

    async def judge(self, claim: Claim) -> Judgement:
        """The verdict, under the name of the judge that gave it."""
        for judge in self._judges:
            found = await judge.judge(claim)
            if found.score == 1.0:
                break
        return found
