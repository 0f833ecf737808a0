"""Counts of behaviour in episodes: repeated actions, and how often each experience item is shown.

Counts of disjoint sets of episodes can be added. Unscored episodes are not counted.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Iterable

from pydantic import Field

from internalize.records import Record, Trajectory


class Behaviour(Record):
    """Counts over a set of scored episodes."""

    episodes: int = 0
    steps: int = 0
    repeated: int = 0  # actions whose text occurred earlier in the same episode
    malformed: int = 0  # turns with a call that could not be made as it was written
    shown: dict[str, int] = Field(default_factory=dict, description="Item id -> number of steps at which it was shown.")

    @staticmethod
    def of(trajectory: Trajectory) -> Behaviour:
        """The counts of one episode; all are zero if it has no score."""
        if trajectory.score is None:
            return Behaviour()
        steps = trajectory.steps
        shown = Counter(key for step in steps if step.injection for key in step.injection.item_ids)
        distinct = len({step.text for step in steps})
        malformed = sum(bool(step.problem) for step in steps)
        repeated = len(steps) - distinct
        return Behaviour(episodes=1, steps=len(steps), repeated=repeated, malformed=malformed, shown=shown)

    @staticmethod
    def of_all(trajectories: Iterable[Trajectory]) -> Behaviour:
        """The counts of several episodes together."""
        return functools.reduce(Behaviour.plus, map(Behaviour.of, trajectories), Behaviour())

    def plus(self, other: Behaviour) -> Behaviour:
        """The sum of two sets of counts."""
        return Behaviour(
            episodes=self.episodes + other.episodes,
            steps=self.steps + other.steps,
            repeated=self.repeated + other.repeated,
            malformed=self.malformed + other.malformed,
            shown=Counter(self.shown) + Counter(other.shown),
        )

    @property
    def repetition(self) -> float | None:
        """Share of actions that repeat an earlier action of their episode; None without actions."""
        return self.repeated / self.steps if self.steps else None

    @property
    def malformation(self) -> float | None:
        """Share of turns with a call that could not be made as it was written; None without actions."""
        return self.malformed / self.steps if self.steps else None

    @property
    def spread(self) -> float | None:
        """Effective number of different items shown: e to the entropy (nats) of the distribution over items.

        From 1 (always the same item) to the number of items; None if no item was shown step-wise.
        """
        total = sum(self.shown.values())
        shares = [count / total for count in self.shown.values()]
        return math.exp(-math.fsum(share * math.log(share) for share in shares)) if shares else None
