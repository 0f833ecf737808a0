"""Episodes onto the disk: each is written when it is over, and those already there are not played again.

An infrastructure failure is an unscored trajectory that is owed again, never a zero.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path

from internalize.errors import Incomplete
from internalize.experience.inject import Injector
from internalize.interfaces import Agent, Environment
from internalize.records import Task, Trajectory
from internalize.runs.store import append_jsonl, read_jsonl, write_jsonl

from .episode import Label, episode_id
from .local import jobs_of, play

Progress = Callable[[int, int], None]  # episodes done, episodes in all
MOST_OWED = 0.1  # share of a stage that may stay unscored before the run stops as incomplete


async def record(
    episodes: Callable[[Collection[str]], AsyncIterator[Trajectory]],
    ids: Sequence[str],
    path: Path,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """The episodes with these ids, in this order, in the file `path`; `episodes` is told which are there already.

    Raises Incomplete when more than `MOST_OWED` of them broke, or when a budget is spent; what was finished is kept.
    """
    found = read_jsonl(path, Trajectory) if path.exists() else []
    done = {t.id: t for t in found if t.failure is None}
    ended = len(done.keys() & set(ids))
    async for trajectory in episodes(frozenset(done)):
        append_jsonl(path, [trajectory])
        done[trajectory.id] = trajectory
        ended += 1
        if progress:
            progress(ended, len(ids))
    ordered = [done[i] for i in ids]
    owed = [t for t in ordered if t.failure is not None]
    if len(owed) > MOST_OWED * len(ordered):
        raise Incomplete(f"{len(owed)} of {len(ordered)} episodes broke ({owed[0].failure}); they are owed again")
    write_jsonl(path, ordered)
    return ordered


async def rollout(
    tasks: Sequence[Task],
    env: Environment,
    agent: Agent,
    injector: Injector,
    label: Label,
    *,
    path: Path,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """`record` of episodes that `agent` plays in `env`, in this process."""
    ids = [episode_id(*job, label) for job in jobs_of(tasks, label.attempts)]
    return await record(lambda done: play(tasks, env, agent, injector, label, done), ids, path, progress)
