"""What episodes do apart from succeeding: whether they repeat themselves, and which experience they are shown.

The counts of two sets of episodes add up to those of both; an episode without a score is not counted.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from internalize.records import Record, Trajectory


class Behaviour(Record):
    """Counts over episodes."""

    episodes: int = 0
    steps: int = 0
    repeated: int = 0  # actions whose text the same episode had written before
    shown: dict[str, int] = Field(default_factory=dict, description="Id of an item -> steps it was shown at.")

    @staticmethod
    def of(trajectory: Trajectory) -> Behaviour:
        """The counts of one episode; nothing if it has no score."""
        if trajectory.score is None:
            return Behaviour()
        steps = trajectory.steps
        shown = Counter(key for step in steps if step.injection for key in step.injection.item_ids)
        distinct = len({step.text for step in steps})
        return Behaviour(episodes=1, steps=len(steps), repeated=len(steps) - distinct, shown=shown)

    @staticmethod
    def of_all(trajectories: Iterable[Trajectory]) -> Behaviour:
        """The counts of all these episodes."""
        return functools.reduce(Behaviour.plus, map(Behaviour.of, trajectories), Behaviour())

    def plus(self, other: Behaviour) -> Behaviour:
        """The counts of both."""
        return Behaviour(
            episodes=self.episodes + other.episodes,
            steps=self.steps + other.steps,
            repeated=self.repeated + other.repeated,
            shown=Counter(self.shown) + Counter(other.shown),
        )

    @property
    def repetition(self) -> float | None:
        """Share of actions that repeat one of their episode; None without actions."""
        return self.repeated / self.steps if self.steps else None

    @property
    def spread(self) -> float | None:
        """Items shown as often as each other that would be as varied: e to the entropy of who was shown (nats).

        From 1 (always the same item) to the number of items; None when nothing was shown step by step.
        """
        total = sum(self.shown.values())
        shares = [count / total for count in self.shown.values()]
        return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else None
