"""What the files of episodes of a run say: what each cost, where each episode lies, its habits, names of its tasks.

One pass, and no episode is kept: the files grow large. Left out: results of evaluations, in a file of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from internalize.evaluation.behaviour import Habits
from internalize.experience.lint import Names
from internalize.records import Record, Trajectory
from internalize.runs import names

from .readers import records_at
from .samples import Entry

Key = tuple[int, str, str, str | None]  # iteration, checkpoint, suite and pool of an episode


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
    habits: dict[Key, Habits]
    entities: frozenset[str]  # names that belong to single tasks


def played(folders: Mapping[int, Path], suites: Iterable[str]) -> Played:
    """Read every file of episodes in the folders of the iterations; `suites` are all that the run measures."""
    costs: dict[int, tuple[Sampled, ...]] = {}
    measuring: dict[int, int] = {}
    entries: list[Entry] = []
    habits: dict[Key, Habits] = {}
    tasks = Names()
    for k, folder in folders.items():
        for stage in (*names.learning(folder, k), *names.measuring(folder, k, suites)):
            cost, path = Sampled(), folder / names.episodes(stage)
            for offset, trajectory in records_at(path, Trajectory):
                cost = _added(cost, trajectory)
                entry = Entry.of(trajectory, path, offset, stage)
                entries.append(entry)
                tasks.add(trajectory)
                key = (trajectory.iteration, trajectory.checkpoint, entry.suite, trajectory.pool_version)
                habits[key] = habits.get(key, Habits()).plus(Habits.of(trajectory))
            if stage.kind == "episodes":
                measuring[k] = measuring.get(k, 0) + cost.action_tokens
            elif cost.episodes:
                costs[k] = (*costs.get(k, ()), cost)
    return Played(costs=costs, measuring=measuring, entries=tuple(entries), habits=habits, entities=tasks.of_tasks())


def _added(cost: Sampled, trajectory: Trajectory) -> Sampled:
    return Sampled(
        episodes=cost.episodes + 1,
        unscored=cost.unscored + (trajectory.score is None),
        action_tokens=cost.action_tokens + sum(len(step.token_ids) for step in trajectory.steps),
    )
