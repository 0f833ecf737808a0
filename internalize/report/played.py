"""What the files of episodes of a run say: what each cost, where each episode lies, its habits, names of its tasks.

One pass, and no episode is kept: the files grow large. Left out: results of evaluations, in a file of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from internalize.habits import Habits
from internalize.lint import Names
from internalize.records import Record, Trajectory

from .reading import records_at
from .samples import Entry

LEARNING, MEASURING = ("rollouts.jsonl", "teacher*.jsonl"), "episodes*.jsonl"  # files of episodes
Key = tuple[int, str, str, str | None]  # iteration, checkpoint, suite and pool of an episode
_SUITE = re.compile(r"episodes-(.+)-(?:internalized|in-context)-\d+(?:-second)?")  # a further suite is not a split


class Sampled(Record):
    """What the episodes of one file cost; `seconds` sums over decisions, which may have run together."""

    file: str
    episodes: int = 0
    unscored: int = 0
    action_tokens: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Played:
    """All episodes of a run."""

    costs: dict[int, tuple[Sampled, ...]]  # of those learnt from, by iteration
    entries: tuple[Entry, ...]
    habits: dict[Key, Habits]
    entities: frozenset[str]  # names that belong to single tasks


def played(folders: Mapping[int, Path]) -> Played:
    """Read every file of episodes in the folders of the iterations."""
    costs: dict[int, tuple[Sampled, ...]] = {}
    entries: list[Entry] = []
    habits: dict[Key, Habits] = {}
    names = Names()
    for k, folder in folders.items():
        learning = [path for pattern in LEARNING for path in sorted(folder.glob(pattern))]
        for path in (*learning, *sorted(folder.glob(MEASURING))):
            cost, measured = Sampled(file=path.stem), _SUITE.fullmatch(path.stem)
            for offset, trajectory in records_at(path, Trajectory):
                cost = _added(cost, trajectory)
                suite = measured.group(1) if measured else trajectory.split
                entries.append(Entry.of(trajectory, path, offset, suite))
                names.add(trajectory)
                key = (trajectory.iteration, trajectory.checkpoint, suite, trajectory.pool_version)
                habits[key] = habits.get(key, Habits()).plus(Habits.of(trajectory))
            if cost.episodes and path in learning:
                costs[k] = (*costs.get(k, ()), cost)
    return Played(costs=costs, entries=tuple(entries), habits=habits, entities=names.of_tasks())


def _added(cost: Sampled, trajectory: Trajectory) -> Sampled:
    return Sampled(
        file=cost.file,
        episodes=cost.episodes + 1,
        unscored=cost.unscored + (trajectory.score is None),
        action_tokens=cost.action_tokens + sum(len(step.token_ids) for step in trajectory.steps),
        seconds=cost.seconds + sum(step.seconds for step in trajectory.steps),
    )
