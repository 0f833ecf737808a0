"""The only agent loop: tasks in, trajectories out, each written as soon as its wave is done.

Episodes run in waves of a fixed composition. A wave that was cut off is run again whole and only the missing
records are added, so a resumed run samples in the same batches as an undisturbed one (invariants 10 and 11). Where
a server samples there are no such batches: only missing episodes are run, and each is written when it ends, so that
nothing is paid for twice.
Left out: what is injected (inject.py), who acts and how it is asked (agent.py). What must not change: an
infrastructure failure is an unscored trajectory that is owed again, never a zero (invariant 9); nothing that a
third-party environment raises ends a run; a spent budget stops the run with its work kept.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from internalize.errors import Incomplete, InternalizeError
from internalize.experience.inject import Injector
from internalize.interfaces import Agent, Environment
from internalize.records import Task, Trajectory
from internalize.runs.store import append_jsonl, read_jsonl, write_jsonl

from .episode import Label, episode_id, run_episode

Progress = Callable[[int, int], None]  # episodes done, episodes in all
Job = tuple[Task, int]  # a task and the number of the attempt
TRIES = 3  # episodes of an engine or environment that breaks are run this often before they stay owed
MOST_OWED = 0.1  # share of a stage that may stay unscored before the run stops as incomplete


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
    """Run every task `label.attempts` times and append the trajectories to `path`; those already there are kept.

    Raises Incomplete when more than `MOST_OWED` of the episodes stay unscored after `TRIES` tries, or when a budget
    is spent; what was finished by then is kept.
    """
    jobs = [(task, attempt) for task in tasks for attempt in range(label.attempts)]
    ids = [episode_id(task, attempt, label) for task, attempt in jobs]
    done = _unbroken(path)
    start, ended = 0, itertools.count(1)

    def keep(found: Iterable[Trajectory]) -> None:
        new = [t for t in found if t.id not in done]
        append_jsonl(path, new)
        done.update((t.id, t) for t in new)

    async def play(job: Job) -> Trajectory:
        trajectory = await run_episode(*job, env, agent, injector, label)
        if agent.independent and trajectory.failure is None:
            keep([trajectory])
        if progress:
            progress(min(start + next(ended), len(jobs)), len(jobs))
        return trajectory

    size = max(len(jobs), 1) if agent.independent else agent.wave
    for start in range(0, len(jobs), size):
        wave, wave_ids = jobs[start : start + size], ids[start : start + size]
        missing = [job for job, i in zip(wave, wave_ids, strict=True) if i not in done]
        ended = itertools.count(1 + (len(wave) - len(missing) if agent.independent else 0))
        if missing:
            agent.reset()
            found, stop = await _wave(missing if agent.independent else wave, play, agent)
            keep(found)
            if stop is not None:
                raise stop
    ordered = [done[i] for i in ids]
    _settle(ordered, path)
    return ordered


def _unbroken(path: Path) -> dict[str, Trajectory]:
    found = read_jsonl(path, Trajectory) if path.exists() else []
    return {t.id: t for t in found if t.failure is None}


def _settle(ordered: Sequence[Trajectory], path: Path) -> None:
    """One record an episode in task order (failed tries dropped), or Incomplete."""
    owed = [t for t in ordered if t.failure is not None]
    if len(owed) > MOST_OWED * len(ordered):
        raise Incomplete(f"{len(owed)} of {len(ordered)} episodes broke ({owed[0].failure}); they are owed again")
    write_jsonl(path, ordered)


async def _wave(
    jobs: Sequence[Job], play: Callable[[Job], Awaitable[Trajectory]], agent: Agent
) -> tuple[list[Trajectory], InternalizeError | None]:
    """Every job once together, then what broke again, one by one; `independent` ones are at most `wave` at a time.

    What no episode could hold (a spent budget, wrong use) comes back beside what was finished.
    """
    found, stop = await _gather(jobs, play, agent.wave if agent.independent else len(jobs))
    for _ in range(TRIES - 1):
        broken = [place for place, t in enumerate(found) if t is not None and t.failure is not None]
        if broken and stop is None:
            again, stop = await _gather([jobs[place] for place in broken], play, agent.wave if agent.independent else 1)
            found = _replaced(found, broken, again)
    return [t for t in found if t is not None], stop


async def _gather(
    jobs: Sequence[Job], play: Callable[[Job], Awaitable[Trajectory]], most: int
) -> tuple[list[Trajectory | None], InternalizeError | None]:
    """Jobs in order, `most` at a time. One that raises keeps others from starting and lets those under way end."""
    places, stops = asyncio.Semaphore(most), list[InternalizeError]()

    async def one(job: Job) -> Trajectory | None:
        async with places:
            try:
                return None if stops else await play(job)
            except InternalizeError as error:
                stops.append(error)
                return None

    found = await asyncio.gather(*(one(job) for job in jobs))
    return found, min(stops, key=lambda stop: isinstance(stop, Incomplete), default=None)


def _replaced(
    found: Sequence[Trajectory | None], places: Sequence[int], again: Sequence[Trajectory | None]
) -> list[Trajectory | None]:
    newer = dict(zip(places, again, strict=True))
    return [newer.get(place) or t for place, t in enumerate(found)]
