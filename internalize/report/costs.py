"""The costs of a run: episodes, tokens, time by kind of stage, memory.

Time in which no process worked on the run is not counted. Stages copied from another run of the study (the starter's
evaluation, the first rollouts) count in the time of the run that played them, and in the tokens of both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean

from pydantic import Field

from internalize.evaluation.metrics import kind_of
from internalize.records import Record, StageKind, StageMark, Trajectory

from .text import count, duration

KINDS = ("rollouts", "extraction", "training", "evaluation")
_KINDS: dict[StageKind, str] = {
    "rollout": "rollouts", "collect": "rollouts", "extract": "extraction",
    "distill": "training", "round": "training", "second": "training",
}  # fmt: skip


class Costs(Record):
    """Costs of an iteration or a run, or the mean of several runs; memory is the peak, in bytes."""

    episodes: float = 0  # episodes for learning; `unscored` and `sampled` too
    unscored: float = 0
    sampled: float = 0
    measured: float = 0  # tokens of evaluation episodes, with those of rejected candidates
    trained: float = 0  # tokens
    failures: dict[str, int] = Field(default_factory=dict, description="All unscored episodes by the kind of failure.")
    seconds: dict[str, float] = Field(default_factory=dict, description="By kind; empty if no time was noted.")
    memory: int = 0
    device_memory: int = 0

    @staticmethod
    def of(trajectory: Trajectory, *, measuring: bool) -> Costs:
        """The costs of one episode."""
        tokens = sum(len(step.token_ids) for step in trajectory.steps)
        failures = {} if trajectory.failure is None else {kind_of(trajectory.failure): 1}
        if measuring:
            return Costs(measured=tokens, failures=failures)
        return Costs(episodes=1, unscored=trajectory.score is None, sampled=tokens, failures=failures)

    @staticmethod
    def noted(mark: StageMark) -> Costs:
        """The costs of a stage by its mark."""
        seconds = {_KINDS.get(mark.stage.kind, "evaluation"): mark.seconds}
        return Costs(seconds=seconds, memory=mark.memory, device_memory=mark.device_memory)

    @staticmethod
    def total(parts: Iterable[Costs]) -> Costs:
        """The sum of these costs; memory is the maximum."""
        found = list(parts)
        noted = [one.seconds for one in found if one.seconds]
        return Costs(
            **{name: sum(getattr(one, name) for one in found) for name in _COUNTED},
            failures=dict(sum((Counter(one.failures) for one in found), Counter())),
            seconds={
                kind: sum(one.get(kind, 0.0) for one in noted) for kind in KINDS if any(kind in one for one in noted)
            },
            memory=max((one.memory for one in found), default=0),
            device_memory=max((one.device_memory for one in found), default=0),
        )

    @staticmethod
    def mean(runs: Sequence[Costs]) -> Costs:
        """The mean over the seeds of a cell; time only over runs that recorded it."""
        noted = [one.seconds for one in runs if one.seconds]
        means = {name: fmean(getattr(one, name) for one in runs) for name in _COUNTED}
        seconds = {kind: fmean(one.get(kind, 0.0) for one in noted) for kind in KINDS} if noted else {}
        return Costs.total(runs).model_copy(update={**means, "seconds": seconds})

    @property
    def words(self) -> str:
        """The costs in a sentence or two."""
        tokens = f"{count(self.sampled)} tokens sampled for learning, {count(self.measured)} for evaluation."
        if not self.seconds:
            return tokens
        parts = ", ".join(f"{kind} {duration(value)}" for kind, value in self.seconds.items())
        work = f"{duration(sum(self.seconds.values()))} of work: {parts}."
        return f"{tokens} {work} Memory is the peak of the process so far."


_COUNTED = ("episodes", "unscored", "sampled", "measured", "trained")
