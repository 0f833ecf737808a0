"""Stores episodes: each is written when it ends, and those already on disk are not played again."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path

from internalize.errors import Incomplete
from internalize.experience.inject import Injector
from internalize.interfaces import Agent, Environment
from internalize.records import Task, Trajectory
from internalize.runs.lines import Lines
from internalize.runs.store import read_jsonl, write_jsonl

from .episode import Label, episode_id
from .local import jobs_of, play

Progress = Callable[[int, int], None]  # episodes done, episodes in all
MOST_FAILED = 0.1  # a stage in which a larger share of episodes failed stops the run as incomplete


async def record(
    episodes: Callable[[Collection[str]], AsyncIterator[Trajectory]],
    ids: Sequence[str],
    path: Path,
    progress: Progress | None = None,
    checkpoint: str = "",
) -> list[Trajectory]:
    """The episodes with these ids, in this order, also stored in `path`. `episodes` receives the ids already there.

    Stored episodes of another `checkpoint` do not count ("" = all count): they were begun for a candidate that was
    rejected. Raises Incomplete when more than `MOST_FAILED` of them failed, or when a budget is spent; finished ones
    are kept.
    """
    stored = read_jsonl(path, Trajectory) if path.exists() else []
    done = {t.id: t for t in stored if t.failure is None and checkpoint in {"", t.checkpoint}}
    ended = len(done.keys() & set(ids))
    lines, writing = Lines(path), deque[asyncio.Future[None]]()
    try:
        async for trajectory in episodes(frozenset(done)):
            writing.append(lines.put(trajectory))
            while writing and writing[0].done():
                writing.popleft().result()  # a write that failed ends the stage
            done[trajectory.id] = trajectory
            ended += 1
            if progress:
                progress(ended, len(ids))
    finally:  # also when the stage is stopped: ended episodes are kept
        await asyncio.shield(asyncio.gather(*writing))
    ordered = [done[i] for i in ids]
    failed = [t for t in ordered if t.failure is not None]
    if len(failed) > MOST_FAILED * len(ordered):
        raise Incomplete(
            f"{len(failed)} of {len(ordered)} episodes failed ({failed[0].failure}); they will be played again"
        )
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
    """`record` for episodes that `agent` plays in `env` in this process."""
    ids = [episode_id(*job, label) for job in jobs_of(tasks, label.attempts)]
    return await record(lambda done: play(tasks, env, agent, injector, label, done), ids, path, progress)
