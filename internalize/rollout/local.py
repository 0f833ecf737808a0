"""Episodes in this process, in waves: the first `RolloutBackend`.

Episodes run in waves of a fixed composition, because a sample depends in its last bits on the batch it is drawn in. A
wave that was cut off is run again whole and only the missing records are given, so a resumed run samples in the same
batches as an undisturbed one. Where a server samples there are no such batches, and only missing episodes are run.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence

from internalize.config.schema import EnvConfig
from internalize.config.specs import RolloutSpec
from internalize.errors import Incomplete, InternalizeError
from internalize.experience.inject import Injector
from internalize.experience.pool import ExperiencePool
from internalize.experience.redact import Redactor
from internalize.experience.selectors import build as build_selector
from internalize.interfaces import Agent, Environment, Policy, PolicyLoader
from internalize.records import Task, Trajectory

from .episode import Label, episode_id, run_episode

Job = tuple[Task, int]  # a task and the number of the attempt
TRIES = 3  # episodes of an engine or environment that breaks are run this often before they stay owed


class LocalRollouts:
    """`interfaces.RolloutBackend` over the policies that `policies` loads; `environments` makes what they act in."""

    def __init__(self, policies: PolicyLoader, environments: Callable[[EnvConfig], Environment]) -> None:
        self._policies, self._environments = policies, environments

    async def run(
        self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()
    ) -> AsyncIterator[Trajectory]:
        """The missing episodes, as `interfaces.RolloutBackend.run` says."""
        policy = await self._policies.load(spec.checkpoint, spec.root)
        env = self._environments(spec.env)
        label = Label(spec.stage, spec.iteration, spec.config.seed, spec.checkpoint.id, spec.attempts)
        async for trajectory in play(tasks, env, policy.agent, injector_of(spec, policy), label, done):
            yield trajectory


def injector_of(spec: RolloutSpec, policy: Policy) -> Injector:
    """What injects experience into these episodes. Raises UserError for a selector whose extra is not installed."""
    if spec.pool is None:
        return Injector(pool_version=spec.pool_version)
    clean = Redactor.of(spec.config.redact).clean
    selector = build_selector(spec.config.inject, policy.chat, spec.replies, spec.checkpoint.id, clean)
    return Injector.over(ExperiencePool(spec.pool, spec.config.extract.cap), spec.config.inject, selector)


def jobs_of(tasks: Sequence[Task], attempts: int) -> list[Job]:
    """Every attempt of every task, in the order in which they are played and stored."""
    return [(task, attempt) for task in tasks for attempt in range(attempts)]


async def play(
    tasks: Sequence[Task],
    env: Environment,
    agent: Agent,
    injector: Injector,
    label: Label,
    done: Collection[str] = (),
) -> AsyncIterator[Trajectory]:
    """Run every task `label.attempts` times; give each episode that is not in `done` when it is over.

    Episodes that broke are run again up to `TRIES` times and given broken if that does not help. Raises what no
    episode could hold (a spent budget, wrong use) after the episodes under way were given.
    """

    async def one(job: Job) -> Trajectory:
        return await run_episode(*job, env, agent, injector, label)

    jobs, known = jobs_of(tasks, label.attempts), set(done)
    size = max(len(jobs), 1) if agent.independent else agent.wave
    for start in range(0, len(jobs), size):
        wave = jobs[start : start + size]
        missing = [job for job in wave if episode_id(*job, label) not in known]
        if missing:
            agent.reset()
            async for trajectory in _wave(missing if agent.independent else wave, one, agent):
                if trajectory.id not in known:
                    yield trajectory


async def _wave(
    jobs: Sequence[Job], play_one: Callable[[Job], Awaitable[Trajectory]], agent: Agent
) -> AsyncIterator[Trajectory]:
    """Every job once together, then what broke again, one by one; `independent` ones are at most `wave` at a time."""
    together = agent.wave if agent.independent else len(jobs)
    for number in range(TRIES):
        broken = []
        async for job, trajectory in _all(jobs, play_one, together):
            if trajectory.failure is None or number == TRIES - 1:
                yield trajectory
            else:
                broken.append((job, trajectory))
        order = {id(job): place for place, job in enumerate(jobs)}
        jobs = [job for job, _ in sorted(broken, key=lambda pair: order[id(pair[0])])]
        together = agent.wave if agent.independent else 1
        if not jobs:
            return


async def _all(
    jobs: Sequence[Job], play_one: Callable[[Job], Awaitable[Trajectory]], most: int
) -> AsyncIterator[tuple[Job, Trajectory]]:
    """Jobs as they end, `most` at a time. One that raises keeps others from starting and lets those under way end."""
    places, stops = asyncio.Semaphore(most), list[InternalizeError]()
    ended: asyncio.Queue[tuple[Job, Trajectory] | None] = asyncio.Queue()

    async def one(job: Job) -> None:
        async with places:
            try:
                await ended.put(None if stops else (job, await play_one(job)))
            except InternalizeError as error:
                stops.append(error)
                await ended.put(None)

    working = [asyncio.create_task(one(job)) for job in jobs]
    try:
        for _ in jobs:
            if (pair := await ended.get()) is not None:
                yield pair
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    if stops:
        raise min(stops, key=lambda stop: isinstance(stop, Incomplete))
