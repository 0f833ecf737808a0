"""Plays episodes on workers of Ray, each with a policy and environments of its own, on any machine of a cluster.

Tasks are cut into shards of as many episodes as are sampled together, so episodes do not depend on the number of
workers. If a worker is lost, another worker plays the episodes of its shard that were not returned yet. This process
writes every record: workers return episodes, replies of a selector, and their use of endpoints, whose budgets hold over
all workers. Workers read weights below the run directory, which all machines must see.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import tempfile
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from internalize.config.compute import ComputeConfig
from internalize.config.schema import Config
from internalize.config.specs import RolloutSpec
from internalize.environments.registry import Environments
from internalize.errors import Incomplete, InfrastructureError, InternalizeError, UserError, first_line
from internalize.inference.client import Usage
from internalize.inference.endpoints import Endpoints
from internalize.interfaces import RolloutBackend
from internalize.records import Task, Trajectory
from internalize.runs.files import append_line, exclusive

from .episode import Label, episode_id
from .local import TRIES, LocalRollouts, jobs_of

_LOG = logging.getLogger(__name__)
_ANSWERS = 10.0  # seconds in which a cluster must accept a connection
_CLOSING = 10.0  # seconds in which a worker's environments must end their processes
_PLAIN = (Incomplete, UserError, InternalizeError)  # their subclasses may not pickle


class Playing(NamedTuple):
    """The backend, environments and endpoints of a worker."""

    backend: RolloutBackend
    environments: Environments
    endpoints: Endpoints


Make = Callable[[Config], Playing]  # called in the worker
Served = Callable[[Path], Awaitable[Config]]  # takes the run's folder


def in_worker(config: Config) -> Playing:
    """The policy of a recipe and its environments."""
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - imports torch, only in the worker

    policy, environments = LocalPolicy.of(config), Environments()
    return Playing(LocalRollouts(policy, environments), environments, policy.endpoints)


class Home(NamedTuple):
    """One message of a worker: an episode, or the end and its reason; new replies; its total use of endpoints."""

    episode: Trajectory | None
    replies: bytes
    usage: dict[str, Usage]
    problem: tuple[type[InternalizeError], str] | None = None


class Shard(NamedTuple):
    """Tasks that one worker plays together, and the ids of their episodes."""

    tasks: Sequence[Task]
    ids: frozenset[str]
    lost: int = 0  # workers that were lost while they played it


def shards(spec: RolloutSpec, tasks: Sequence[Task]) -> list[Shard]:
    """The tasks in parts of `compute.batch` episodes; all attempts of a task are in one part."""
    size = max(1, spec.config.compute.batch // spec.attempts)
    label = Label(spec.stage, spec.iteration, spec.config.seed, spec.checkpoint.id, spec.attempts)
    parts = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return [Shard(part, frozenset(episode_id(*job, label) for job in jobs_of(part, spec.attempts))) for part in parts]


class Worker:
    """Plays shards in a process of Ray."""

    def __init__(self, config: Config, make: Make) -> None:
        self._config, self._make = config, make
        self._playing: Playing | None = None

    async def play(
        self, spec: RolloutSpec, shard: Shard, done: Collection[str], known: bytes, budgets: dict[str, Usage]
    ) -> AsyncIterator[Home]:
        """Yield the missing episodes of a shard, each as soon as it ends.

        `known`: replies that need not be requested again. `budgets`: what this shard may spend, by endpoint.
        """
        with tempfile.TemporaryDirectory() as folder:
            replies, position = Path(folder, "replies.jsonl"), len(known)
            replies.write_bytes(known)
            problem = None
            try:
                playing = self._playing = self._playing or self._make(self._config)
                for name, budget in budgets.items():
                    _allow(playing.endpoints, name, budget)
                given = spec.model_copy(update={"replies": replies})
                async for episode in playing.backend.run(given, shard.tasks, done):
                    new = _whole_lines(replies, position)
                    position += len(new)
                    yield Home(episode, new, playing.endpoints.usage)
            except InternalizeError as error:
                problem = next(kind for kind in _PLAIN if isinstance(error, kind)), str(error)
            usage = self._playing.endpoints.usage if self._playing else {}
            yield Home(None, _whole_lines(replies, position), usage, problem)

    async def close(self) -> None:
        """End the processes of the environments."""
        if self._playing is not None:
            self._playing.environments.close()


def _allow(endpoints: Endpoints, name: str, budget: Usage) -> None:
    """Let this process spend `budget` more on an endpoint."""
    client = endpoints.client(name)
    limits = {
        "max_tokens": budget.prompt_tokens and budget.prompt_tokens + client.usage.tokens,
        "max_cost": budget.cost and budget.cost + client.usage.cost,
    }
    client.config = client.config.model_copy(update=limits)


def _whole_lines(file: Path, position: int) -> bytes:
    data = file.read_bytes()[position:]
    return data[: data.rfind(b"\n") + 1]


class RayRollouts:
    """`interfaces.RolloutBackend` over `compute.replicas` workers. `endpoints`, of this process, hold the budgets.

    `served` gives the workers' recipe, with the address of servers that this process starts.
    """

    def __init__(
        self, config: Config, endpoints: Endpoints, make: Make = in_worker, served: Served | None = None
    ) -> None:
        self._config, self._make, self._served = config, make, served
        self._budgets = Budgets(config, endpoints)
        self._workers: dict[int, Any] = {}
        weakref.finalize(self, _end, self._workers)
        start(config.compute)

    async def run(
        self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()
    ) -> AsyncIterator[Trajectory]:
        """Play the missing episodes, as `interfaces.RolloutBackend.run` specifies."""
        if self._served:
            self._config = await self._served(spec.root)
        stage = _Stage(self, spec, set(done), [one for one in shards(spec, tasks) if not one.ids <= set(done)])
        serving = [asyncio.create_task(stage.serve(slot)) for slot in range(self._config.compute.replicas)]
        try:
            for _ in serving:  # None marks the end of each worker
                while (episode := await stage.home.get()) is not None:
                    yield episode
        finally:
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)
        if stage.errors:  # Incomplete is reported only if there is no other error
            raise min(stage.errors, key=lambda error: isinstance(error, Incomplete))

    def worker(self, slot: int) -> Any:
        """The worker of a slot, started if there is none."""
        import ray  # noqa: PLC0415 - an extra

        if slot not in self._workers:
            kind = ray.remote(num_cpus=1, num_gpus=self._config.compute.gpus, max_concurrency=2)(Worker)
            where = self._config.compute.model_copy(update={"device": "auto"})  # of those Ray gives the worker
            self._workers[slot] = kind.remote(self._config.model_copy(update={"compute": where}), self._make)
        return self._workers[slot]

    def lose(self, slot: int) -> None:
        """Drop a worker that has died."""
        self._workers.pop(slot, None)

    @property
    def budgets(self) -> Budgets:
        """The budgets of the endpoints."""
        return self._budgets


class _Stage:
    """The shards of one stage and the episodes that the workers have returned."""

    def __init__(self, rollouts: RayRollouts, spec: RolloutSpec, known: set[str], waiting: list[Shard]) -> None:
        self._rollouts, self._spec, self._known, self._waiting = rollouts, spec, known, waiting
        self.home: asyncio.Queue[Trajectory | None] = asyncio.Queue()
        self.errors: list[InternalizeError] = []

    async def serve(self, slot: int) -> None:
        """Have one worker play one shard after another. After an error no shard starts."""
        from ray.exceptions import ObjectLostError, RayActorError, WorkerCrashedError  # noqa: PLC0415 - an extra

        try:
            while self._waiting and not self.errors:
                shard = self._waiting.pop(0)
                try:
                    await self._play(slot, shard)
                except (RayActorError, ObjectLostError, WorkerCrashedError) as error:
                    self._rollouts.lose(slot)
                    self._again(shard, first_line(error))
        except InternalizeError as error:
            self.errors.append(error)
        finally:
            await self.home.put(None)

    async def _play(self, slot: int, shard: Shard) -> None:
        budgets, replies = self._rollouts.budgets, self._spec.replies
        done = self._known & shard.ids
        known = replies.read_bytes() if replies and replies.exists() else b""
        share = budgets.share(self._spec.config.compute.replicas)
        spent_before = budgets.spent
        playing = self._rollouts.worker(slot).play.options(num_returns="streaming")
        async for reference in playing.remote(self._spec, shard, done, known, share):
            home: Home = await reference
            if home.replies and replies:
                with exclusive(replies):
                    append_line(replies, home.replies)
            budgets.count(slot, home.usage)
            if home.episode is not None and home.episode.id not in self._known:
                self._known.add(home.episode.id)
                await self.home.put(home.episode)
            elif home.problem:
                kind, message = home.problem
                if kind is not Incomplete or not budgets.left or budgets.spent == spent_before:
                    raise kind(message)
                self._waiting.append(shard)  # the worker's share is spent, but not the whole budget

    def _again(self, shard: Shard, reason: str) -> None:
        """Queue the rest of a shard for another worker. Raises Incomplete after `TRIES` lost workers."""
        rest = len(shard.ids - self._known)
        if shard.lost + 1 == TRIES:
            raise Incomplete(f"{rest} episodes are owed: {TRIES} workers were lost while they played them ({reason})")
        _LOG.warning("a worker was lost (%s); another one plays the %d episodes that it owes", reason, rest)
        self._waiting.append(shard._replace(lost=shard.lost + 1))


class Budgets:
    """The spending of this process and all workers on endpoints, against the recipe's budgets."""

    def __init__(self, config: Config, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        used = set(config.endpoints_used.values())
        self._limited = [name for name in used if config.endpoints[name].max_tokens or config.endpoints[name].max_cost]
        self._counted: dict[tuple[int, str], Usage] = {}  # the last reported use of each worker

    @property
    def spent(self) -> dict[str, Usage]:
        """The use of each endpoint that has a budget."""
        return {name: self._endpoints.client(name).usage for name in self._limited}

    @property
    def left(self) -> bool:
        """Whether every budget has something left."""
        return all(self._rest(name, "max_tokens") > 0 and self._rest(name, "max_cost") > 0 for name in self._limited)

    def share(self, workers: int) -> dict[str, Usage]:
        """What one of `workers` workers may spend now, by endpoint; 0 = no limit."""
        found = {}
        for name in self._limited:
            config = self._endpoints.client(name).config
            tokens = config.max_tokens and max(1, int(self._rest(name, "max_tokens") / workers))
            cost = config.max_cost and max(1e-9, self._rest(name, "max_cost") / workers)
            found[name] = Usage(prompt_tokens=tokens, cost=cost)
        return found

    def count(self, slot: int, usage: dict[str, Usage]) -> None:
        """Add the use of a worker since its last report to this process's use."""
        for name, now in usage.items():
            before = self._counted.get((slot, name), Usage())
            if now.requests < before.requests:  # a new worker has replaced a lost one
                before = Usage()
            self._counted[slot, name] = now
            client = self._endpoints.client(name)
            more = {key: getattr(client.usage, key) + getattr(now, key) - getattr(before, key) for key in _COUNTS}
            client.usage = client.usage.model_copy(update=more)

    def _rest(self, name: str, key: str) -> float:
        client = self._endpoints.client(name)
        limit, used = getattr(client.config, key), client.usage.tokens if key == "max_tokens" else client.usage.cost
        return float(limit - used) if limit else 1.0


_COUNTS = tuple(Usage.model_fields)


def start(compute: ComputeConfig) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one on this machine.

    Raises UserError if there is no such cluster, InfrastructureError if none can be started.
    """
    import ray  # noqa: PLC0415 - an extra

    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        require_answer(address)
        alone = {"num_cpus": compute.replicas, "include_dashboard": False}
        try:
            ray.init(**({} if address else alone), log_to_driver=False, logging_level="ERROR")
        except Exception as error:  # Ray raises the bare class
            if address:
                raise UserError(
                    f"RAY_ADDRESS = {address!r}: no cluster of Ray answers ({first_line(error)})"
                ) from error
            raise InfrastructureError(f"Ray cannot be started on this machine: {first_line(error)}") from error
    if compute.gpus > (there := ray.cluster_resources().get("GPU", 0)):
        _LOG.warning("compute.gpus = %g: the cluster has %g GPUs, so workers wait for more", compute.gpus, there)


def require_answer(address: str) -> None:
    """Raise UserError if nobody listens at HOST:PORT or ray://HOST:PORT: Ray itself would try for minutes."""
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWERS).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"RAY_ADDRESS = {address!r}: no cluster of Ray answers ({error})") from error


def _end(workers: dict[int, Any]) -> None:
    """End the processes of the workers' environments, then the workers."""
    import ray  # noqa: PLC0415 - an extra

    if workers and ray.is_initialized():
        ray.wait([worker.close.remote() for worker in workers.values()], num_returns=len(workers), timeout=_CLOSING)
        for worker in workers.values():
            ray.kill(worker)
    workers.clear()
