"""What the files of episodes of a run say: what each cost, where each episode lies, its habits, names of its tasks.

One pass, and no episode is kept: the files grow large. Left out: results of evaluations, in a file of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from internalize.evaluation.behaviour import Habits
from internalize.experience.lint import Names
from internalize.records import Record, Trajectory

from .readers import records_at
from .samples import MEASURED, Entry

LEARNING, MEASURING = ("rollouts.jsonl", "teacher*.jsonl"), "episodes*.jsonl"  # files of episodes
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


def played(folders: Mapping[int, Path]) -> Played:
    """Read every file of episodes in the folders of the iterations."""
    costs: dict[int, tuple[Sampled, ...]] = {}
    measuring: dict[int, int] = {}
    entries: list[Entry] = []
    habits: dict[Key, Habits] = {}
    names = Names()
    for k, folder in folders.items():
        learning = [path for pattern in LEARNING for path in sorted(folder.glob(pattern))]
        for path in (*learning, *sorted(folder.glob(MEASURING))):
            cost, measured = Sampled(), MEASURED.fullmatch(path.stem)
            for offset, trajectory in records_at(path, Trajectory):
                cost = _added(cost, trajectory)
                entry = Entry.of(trajectory, path, offset, k, measured)
                entries.append(entry)
                names.add(trajectory)
                key = (trajectory.iteration, trajectory.checkpoint, entry.suite, trajectory.pool_version)
                habits[key] = habits.get(key, Habits()).plus(Habits.of(trajectory))
            if path not in learning:
                measuring[k] = measuring.get(k, 0) + cost.action_tokens
            elif cost.episodes:
                costs[k] = (*costs.get(k, ()), cost)
    return Played(costs=costs, measuring=measuring, entries=tuple(entries), habits=habits, entities=names.of_tasks())


def _added(cost: Sampled, trajectory: Trajectory) -> Sampled:
    return Sampled(
        episodes=cost.episodes + 1,
        unscored=cost.unscored + (trajectory.score is None),
        action_tokens=cost.action_tokens + sum(len(step.token_ids) for step in trajectory.steps),
    )
