"""A second RolloutBackend: worker processes that build policy and environment from the pickled RolloutSpec."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from internalize.config.specs import RolloutSpec
from internalize.environments import registry
from internalize.interfaces import RolloutBackend
from internalize.records import Task, Trajectory
from internalize.rollout.local import LocalRollouts


@cache
def _backend(config: str) -> RolloutBackend:
    """The policy of a recipe and its environments, made once in each worker."""
    from internalize.config.schema import Config  # noqa: PLC0415 - torch, in the worker alone
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415

    registry.BUILTIN["toy"] = registry.Builtin("tests.toy", "Toy", "boxes")
    policy = LocalPolicy.of(Config.model_validate_json(config), check=False)
    return LocalRollouts(policy, registry.Environments())


def _play(spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str]) -> list[Trajectory]:
    async def episodes() -> list[Trajectory]:
        return [t async for t in _backend(spec.config.model_dump_json()).run(spec, tasks, done)]

    return asyncio.run(episodes())


class WorkerRollouts:
    """`interfaces.RolloutBackend` over `workers` processes; each task is played as a whole by one of them."""

    def __init__(self, workers: int) -> None:
        self._pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))

    async def run(
        self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()
    ) -> AsyncIterator[Trajectory]:
        """The missing episodes, those of a task together."""
        loop = asyncio.get_running_loop()
        playing = [loop.run_in_executor(self._pool, _play, spec, [task], done) for task in tasks]
        for ended in asyncio.as_completed(playing):
            for trajectory in await ended:
                yield trajectory

    def close(self) -> None:
        """End the workers."""
        self._pool.shutdown()
