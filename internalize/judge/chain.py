"""Runs several judges in order, cheap ones first, until one accepts.

If none accepts, the last judge decides; its failure leaves the answer unscored.
"""

from __future__ import annotations

from collections.abc import Sequence

from internalize.interfaces import Judge
from internalize.records import Claim, Judgement


class ChainJudge:
    """Returns the first acceptance of `judges`, or else the verdict of the last one."""

    def __init__(self, judges: Sequence[Judge]) -> None:
        if not judges:
            raise ValueError("a chain needs at least one judge")
        self._judges = tuple(judges)

    async def judge(self, claim: Claim) -> Judgement:
        """The verdict, under the name of the judge that gave it."""
        for judge in self._judges:
            judgement = await judge.judge(claim)
            if judgement.score == 1.0:
                break
        return judgement
