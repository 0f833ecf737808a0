"""What the files of episodes of a run say: what each cost, where each episode lies, names of its tasks.

One pass, and no episode is kept: the files grow large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.metrics import SuiteMetrics
from internalize.experience.lint import Names
from internalize.records import Record, Trajectory
from internalize.runs import names
from internalize.runs.readers import records_at

from .samples import Entry


class Sampled(Record):
    """What the episodes of one file cost."""

    episodes: int = 0
    unscored: int = 0
    action_tokens: int = 0


@dataclass(frozen=True)
class Played:
    """All episodes of a run."""

    costs: dict[int, tuple[Sampled, ...]]  # of those learnt from, by iteration
    measuring: dict[int, int]  # tokens of evaluation episodes, rejected candidates' too, by folder
    entries: tuple[Entry, ...]
    entities: frozenset[str]  # names that belong to single tasks

    def behaviour(self, line: SuiteMetrics) -> Behaviour:
        """Of the episodes that a line was made from, read again: version 1 did not note it."""
        key = (line.iteration, line.checkpoint, line.suite)
        found = [e.read() for e in self.entries if (e.iteration, e.checkpoint, e.suite) == key]
        return Behaviour.of_all(t for t in found if t.pool_version == line.pool_version)


def played(folders: Mapping[int, Path], suites: Iterable[str]) -> Played:
    """Read every file of episodes in the folders of the iterations; `suites` are all that the run measures."""
    costs: dict[int, tuple[Sampled, ...]] = {}
    measuring: dict[int, int] = {}
    entries: list[Entry] = []
    tasks = Names()
    for k, folder in folders.items():
        for stage in (*names.learning(folder, k), *names.measuring(folder, k, suites)):
            cost, path = Sampled(), folder / names.episodes(stage)
            for offset, trajectory in records_at(path, Trajectory):
                cost = _added(cost, trajectory)
                entries.append(Entry.of(trajectory, path, offset, stage))
                tasks.add(trajectory)
            if stage.kind == "episodes":
                measuring[k] = measuring.get(k, 0) + cost.action_tokens
            elif cost.episodes:
                costs[k] = (*costs.get(k, ()), cost)
    return Played(costs=costs, measuring=measuring, entries=tuple(entries), entities=tasks.of_tasks())


def _added(cost: Sampled, trajectory: Trajectory) -> Sampled:
    return Sampled(
        episodes=cost.episodes + 1,
        unscored=cost.unscored + (trajectory.score is None),
        action_tokens=cost.action_tokens + sum(len(step.token_ids) for step in trajectory.steps),
    )
