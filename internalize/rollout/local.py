"""Plays episodes in this process, in waves.

The last bits of a sample depend on the batch it is drawn in, so waves have a fixed composition: an interrupted wave is
played again completely and only its missing episodes are returned, so that a resumed run samples in the same batches as
an uninterrupted one. A server forms its own batches, so with a server only missing episodes are played.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from typing import NamedTuple, Protocol

from internalize.config.schema import EnvConfig
from internalize.config.specs import RolloutSpec
from internalize.environments import registry
from internalize.environments.agent.env import PlayedByAgent
from internalize.errors import Incomplete, InternalizeError
from internalize.experience.inject import Injector
from internalize.experience.placebo import instead_of
from internalize.experience.pool import ExperiencePool
from internalize.experience.redact import Redactor
from internalize.experience.selectors import build as build_selector
from internalize.inference.tool_formats import text_format
from internalize.interfaces import Agent, ChatModel, Environment, PolicyLoader, Renderer
from internalize.records import Task, Trajectory

from .episode import Label, episode_id, run_episode
from .external import agent_runner

Job = tuple[Task, int]  # a task and the number of the attempt
GLOBAL_SHARE = 0.5  # of the context that experience in the system message may take: the conversation needs the rest
TRIES = 3  # a failed episode is played this often before it is returned as failed


class Pace(NamedTuple):
    """How many episodes run together, and whether they depend on each other (`interfaces.Agent`)."""

    wave: int
    reset: Callable[[], None]
    independent: bool = True


class LocalRollouts:
    """`interfaces.RolloutBackend` with policies loaded by `policies` and environments made by `environments`."""

    def __init__(self, policies: PolicyLoader, environments: Callable[[EnvConfig], Environment]) -> None:
        self._policies, self._environments = policies, environments

    async def run(
        self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()
    ) -> AsyncIterator[Trajectory]:
        """Play the missing episodes, as `interfaces.RolloutBackend.run` specifies."""
        policy = await self._policies.load(spec.checkpoint, spec.root)
        env = self._environments(spec.env)
        label = Label(spec.stage, spec.iteration, spec.config.seed, spec.checkpoint.id, spec.attempts)
        agent, injector = policy.agent, injector_of(spec, policy)
        if not isinstance(env, PlayedByAgent):
            async for trajectory in play(tasks, env, agent, injector, label, done):
                yield trajectory
            return
        tool_format = text_format(spec.config.model.protocol)
        async with agent_runner(env, agent, tool_format, injector, label) as runner:

            async def one(job: Job) -> Trajectory:
                return await runner.play(*job)

            async for trajectory in _missing(tasks, one, label, done, Pace(env.options.at_once, agent.reset)):
                yield trajectory


class Chats(Protocol):
    """Chat models by name: a policy, or the endpoints of a recipe."""

    def chat(self, name: str) -> ChatModel:
        """The chat model of this name."""
        ...


def injector_of(spec: RolloutSpec, chats: Chats) -> Injector:
    """The injector for these episodes. Raises UserError for a selector whose extra is not installed."""
    if spec.pool is None:
        return Injector(pool_version=spec.pool_version)
    clean = Redactor.of(spec.config.redact).clean
    cues = registry.vocabulary(spec.config.env.name)  # the pool's environment, which may not be spec.env
    selector = build_selector(spec.config.inject, chats.chat, spec.replies, spec.checkpoint.id, clean, cues)
    shown = instead_of(spec.pool, spec.config.inject.shown, spec.config.seed, cues)
    pool = ExperiencePool(shown, max(spec.config.extract.cap, len(shown)))
    # A chat endpoint has no renderer: how many tokens its model needs is not known, and its server refuses too many.
    renderer: Renderer | None = getattr(chats, "renderer", None)
    most = GLOBAL_SHARE * spec.config.model.max_context
    return Injector.over(
        pool,
        spec.config.inject,
        selector,
        lambda text: renderer is None or len(renderer.encode_text(text)) <= most,
    )


def jobs_of(tasks: Sequence[Task], attempts: int) -> list[Job]:
    """Every attempt of every task, in the order in which episodes are played and stored."""
    return [(task, attempt) for task in tasks for attempt in range(attempts)]


async def play(
    tasks: Sequence[Task],
    env: Environment,
    agent: Agent,
    injector: Injector,
    label: Label,
    done: Collection[str] = (),
) -> AsyncIterator[Trajectory]:
    """Play every task `label.attempts` times and yield each episode that is not in `done` as soon as it ends.

    A failed episode is played up to `TRIES` times, then yielded as failed. Errors that concern no single episode (a
    spent budget, wrong use) are raised after the episodes under way have been yielded.
    """

    async def one(job: Job) -> Trajectory:
        return await run_episode(*job, env, agent, injector, label)

    wave = min(agent.wave, getattr(env, "at_once", agent.wave))
    pace = Pace(wave, agent.reset, independent=agent.independent)
    async for trajectory in _missing(tasks, one, label, done, pace):
        yield trajectory


async def _missing(
    tasks: Sequence[Task], one: Callable[[Job], Awaitable[Trajectory]], label: Label, done: Collection[str], pace: Pace
) -> AsyncIterator[Trajectory]:
    """The episodes that are not in `done`. Waves of dependent episodes are played completely."""
    jobs, known = jobs_of(tasks, label.attempts), set(done)
    size = max(len(jobs), 1) if pace.independent else pace.wave
    for start in range(0, len(jobs), size):
        wave = jobs[start : start + size]
        missing = [job for job in wave if episode_id(*job, label) not in known]
        if missing:
            pace.reset()
            async for trajectory in _wave(missing if pace.independent else wave, one, pace):
                if trajectory.id not in known:
                    yield trajectory


async def _wave(
    jobs: Sequence[Job], play_one: Callable[[Job], Awaitable[Trajectory]], pace: Pace
) -> AsyncIterator[Trajectory]:
    """Play all jobs together, then failed ones one by one; `independent` jobs run at most `wave` at a time."""
    concurrency = pace.wave if pace.independent else len(jobs)
    for number in range(TRIES):
        failed = set()
        async for job, trajectory in _all(jobs, play_one, concurrency):
            if trajectory.failure is None or number == TRIES - 1:
                yield trajectory
            else:
                failed.add(id(job))
        jobs = [job for job in jobs if id(job) in failed]
        concurrency = pace.wave if pace.independent else 1
        if not jobs:
            return


async def _all(
    jobs: Sequence[Job], play_one: Callable[[Job], Awaitable[Trajectory]], concurrency: int
) -> AsyncIterator[tuple[Job, Trajectory]]:
    """Yield jobs as they end, `concurrency` at a time. After an error no job starts, but those under way finish."""
    slots, errors = asyncio.Semaphore(concurrency), list[InternalizeError]()
    ended: asyncio.Queue[tuple[Job, Trajectory] | None] = asyncio.Queue()

    async def one(job: Job) -> None:
        async with slots:
            try:
                await ended.put(None if errors else (job, await play_one(job)))
            except InternalizeError as error:
                errors.append(error)
                await ended.put(None)

    workers = [asyncio.create_task(one(job)) for job in jobs]
    try:
        for _ in jobs:
            if (pair := await ended.get()) is not None:
                yield pair
    finally:
        for task in workers:
            task.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    if errors:  # Incomplete is reported only if there is no other error
        raise min(errors, key=lambda error: isinstance(error, Incomplete))
