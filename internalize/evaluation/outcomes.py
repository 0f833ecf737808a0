"""The outcomes of episodes in words: what there was to learn from, and advice if there was nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from internalize.records import Termination, Trajectory

ADVICE = (
    "what helps: a stronger model (model.source), more attempts (rollout.attempts), easier tasks, a language model that"
    " writes the experience (extract.source), or a warm-up on reference solutions"
)
_ENDS: dict[Termination, str] = {
    "answered": "ended with a wrong answer",
    "max_steps": "used up their steps (rollout.max_steps)",
    "context_full": "filled the context (model.max_context)",
    "failed": "broke and have no score",
}


class Outcomes(NamedTuple):
    """Counts over episodes without experience."""

    episodes: int
    succeeded: int
    ends: Counter[Termination]  # of episodes without success
    turns: int
    without_call: int  # turns without a valid call
    tasks: int
    mixed: int  # tasks with a success and a failure

    @staticmethod
    def of(trajectories: Sequence[Trajectory]) -> Outcomes:
        """The counts of these episodes."""
        scores: defaultdict[str, set[bool]] = defaultdict(set)
        for t in trajectories:
            if t.score is not None:
                scores[t.task_id].add(t.score > 0)
        steps = [step for t in trajectories for step in t.steps]
        return Outcomes(
            len(trajectories),
            sum(bool(t.score) for t in trajectories),
            Counter(t.termination for t in trajectories if not t.score),
            len(steps),
            sum(not step.calls for step in steps),
            len({t.task_id for t in trajectories}),
            sum(len(won) == 2 for won in scores.values()),
        )

    @property
    def text(self) -> str:
        """Half a sentence: how many succeeded, how the others ended, and how many tasks can be compared."""
        ends = [f"{count} {_ENDS[end]}" for end, count in self.ends.most_common()]
        calls = f"; {self.without_call} of {self.turns} turns held no valid call" if self.without_call else ""
        compared = f"; {self.mixed} of {self.tasks} tasks have a success and a failure"
        return f"{self.succeeded} of {self.episodes} episodes succeeded ({', '.join(ends) or 'all'}){calls}{compared}"
