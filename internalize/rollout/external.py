"""Episodes that the user's own agent plays: it calls the policy over HTTP, with a path for each episode.

Episodes influence each other's samples by float rounding only, so a resumed stage plays only the missing ones.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

from internalize.config.serve import ServeConfig
from internalize.environments.agent.env import PlayedByAgent
from internalize.errors import Incomplete, InfrastructureError, InternalizeError
from internalize.experience.inject import Injector
from internalize.experience.redact import Redactor
from internalize.interfaces import Agent, ToolFormat
from internalize.records import Claim, Message, Task, Termination, Trajectory
from internalize.serve.agents import Outcome, Seat, run_command, run_function
from internalize.serve.history import Label as Common
from internalize.serve.history import trajectories_of
from internalize.serve.records import Acting, EpisodeScore, RecordedCall
from internalize.serve.service import Model, Service

from .episode import Label, episode_id

if TYPE_CHECKING:
    from starlette.applications import Starlette


@dataclass(frozen=True)
class AgentRunner:
    """Plays single episodes over a running endpoint."""

    env: PlayedByAgent
    agent: Agent
    injector: Injector
    label: Label
    service: Service
    address: str
    key: str
    posted: dict[str, EpisodeScore] = field(default_factory=dict)

    async def play(self, task: Task, attempt: int) -> Trajectory:
        """One episode. An error of the agent or the engine becomes `failure`. Raises Incomplete for a spent budget."""
        name = episode_id(task, attempt, self.label)
        path = f"{name}-{uuid4().hex[:8]}"  # one for each try, so that late calls of an earlier try are not counted
        self.service.open(path, self.agent.limits.max_steps, seed=name)
        try:
            outcome = await self._run(task, Seat(f"{self.address}/episodes/{path}", self.key))
            ended, error = self.service.ended(path), self.service.errors.pop(path, None)
        finally:
            calls = self.service.close(path)
        if isinstance(error, Incomplete):
            raise error
        played = self._trajectory(task, attempt, calls).model_copy(update={"id": name, "termination": ended})
        failure = self._failure(outcome, ended, error, calls)
        if failure:
            return played.model_copy(update={"failure": failure, "termination": "failed"})
        try:
            return played.model_copy(update={"score": await self._score(task, path, played, outcome)})
        except InfrastructureError as problem:
            return played.model_copy(update={"failure": str(problem), "termination": "failed"})

    async def _run(self, task: Task, seat: Seat) -> Outcome:
        options = self.env.options
        if self.env.function:
            return await run_function(self.env.function, task, seat, options.seconds)
        return await run_command(self.env.command, task, seat, options.seconds)

    def _failure(
        self, outcome: Outcome, ended: Termination, error: InternalizeError | None, calls: Sequence[RecordedCall]
    ) -> str:
        """Why the episode does not count ('' = it counts). An agent may well fail after its calls were refused."""
        if error is not None:
            return str(error)
        if outcome.error and ended == "answered" and self.env.options.on_error == "unscored":
            return outcome.error
        return "" if calls else outcome.error or "the agent made no call of the model"

    def _trajectory(self, task: Task, attempt: int, calls: Sequence[RecordedCall]) -> Trajectory:
        """The conversation of the last call, with the others as branches; without calls an episode without steps."""
        label = self.label
        common = Common(task.id, task.env, task.split, task.family, label.iteration, label.seed, attempt)
        if found := trajectories_of(calls, common):
            return found[0].model_copy(update={"branches": tuple(found[1:])})
        prompt = (Message(role="user", content=task.question),)
        acting = self.service.model.acting
        return Trajectory(id="", **common._asdict(), **acting.model_dump(), prompt=prompt, termination="failed")

    async def _score(self, task: Task, path: str, played: Trajectory, outcome: Outcome) -> float | None:
        """The score that the agent returned or posted (0 after an error without one), else the verifier's, else the
        judge's.

        Raises InfrastructureError if a verifier or a judge fails.
        """
        posted = self.posted.pop(path, None)
        given = posted.score if posted else outcome.score
        if given is not None or outcome.error:
            return given or 0.0
        answer = played.answer if outcome.answer is None else outcome.answer
        if self.env.verifier:
            return self._verified(task, played)
        if task.answer is None or self.agent.judge is None:
            return None
        if played.termination != "answered" or not answer:
            return 0.0
        judgement = await self.agent.judge.judge(Claim(question=task.question, reference=task.answer, answer=answer))
        if judgement.score is None:
            raise InfrastructureError(judgement.reason or f"{judgement.judge} gave no score")
        return judgement.score

    def _verified(self, task: Task, played: Trajectory) -> float | None:
        assert self.env.verifier
        try:
            value = self.env.verifier(task, played)
            score = None if value is None else float(value)
        except Exception as error:  # a user's function may raise anything
            raise InfrastructureError(f"env.options.verifier raised {type(error).__name__}: {error}") from error
        if score is not None and not 0 <= score <= 1:
            raise InfrastructureError(f"env.options.verifier gave the score {score}, which is not from 0 to 1")
        return score


@asynccontextmanager
async def agent_runner(
    env: PlayedByAgent, agent: Agent, tool_format: ToolFormat, injector: Injector, label: Label
) -> AsyncIterator[AgentRunner]:
    """A runner whose endpoint listens on loopback until the block ends."""
    from internalize.serve.app import Endpoint  # noqa: PLC0415 - an extra
    from internalize.serve.server import serving  # noqa: PLC0415

    acting = Acting(checkpoint=label.checkpoint, pattern=injector.pattern, pool_version=injector.pool_version)
    settings, posted = ServeConfig(concurrency=1024, queue=100_000), dict[str, EpisodeScore]()

    async def kept(_: RecordedCall) -> None:
        """Store nothing: the trajectory is stored when the episode ends."""

    async def scored(score: EpisodeScore) -> None:
        posted[score.episode] = score

    model, key = Model(acting, tool_format, injector, agent), secrets.token_urlsafe(24)
    service = Service(model, Redactor(), kept, settings.remember, announced=True)
    app: Starlette = Endpoint(service, settings, key, scored).app()
    async with serving(app) as address:
        yield AgentRunner(env, agent, injector, label, service, address, key, posted)
