"""The only agent loop: one task in, one trajectory out.

An infrastructure failure is an unscored trajectory that is owed again, never a zero. Nothing that an environment of
another package raises ends a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from internalize.environments.checks import claim_of, episode_of, observation_of, prompt_of, score_of
from internalize.errors import InfrastructureError, InternalizeError
from internalize.experience.inject import Injector
from internalize.inference.renderer import Renderer
from internalize.interfaces import Agent, Environment, Episode
from internalize.records import (
    ActionRequest,
    Claim,
    Injection,
    Message,
    Step,
    Task,
    Termination,
    ToolCall,
    Trajectory,
    content_hash,
    result_of,
)

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Label:
    """What every trajectory of one stage has in common."""

    stage: str
    iteration: int
    seed: int
    checkpoint: str
    attempts: int = 1  # episodes a task


def episode_id(task: Task, attempt: int, label: Label) -> str:
    """The id of a trajectory: what was asked, when and with which seed, not what came out."""
    return content_hash([label.stage, label.iteration, label.seed, task.id, attempt])


async def run_episode(
    task: Task, attempt: int, env: Environment, agent: Agent, injector: Injector, label: Label
) -> Trajectory:
    """One episode. What breaks in the engine or the environment becomes `failure`, never an exception."""
    name = episode_id(task, attempt, label)
    run = _Run(name, injector.global_injection())
    termination: Termination = "failed"
    score, failure, episode = None, None, None
    try:
        episode = episode_of(env.name, await _asked(env, env.episode, task))
        prompt = prompt_of(env.name, await _asked(env, episode.prompt))
        run.prompt = Renderer.with_system(prompt, agent.instructions(env.tools))
        termination = await run.play(episode, env, agent, injector)
        score = await _score(episode, env, agent)
    except InfrastructureError as error:
        failure = str(error) or type(error).__name__
        termination = "failed"
    finally:
        agent.release(name)
        await _close(episode, env)
    return Trajectory(
        id=name,
        task_id=task.id,
        env=task.env,
        split=task.split,
        family=task.family,
        iteration=label.iteration,
        seed=label.seed,
        attempt=attempt,
        pattern=injector.pattern,
        checkpoint=label.checkpoint,
        pool_version=injector.pool_version,
        prompt=run.prompt,
        global_injection=run.global_injection,
        steps=tuple(run.steps),
        termination=termination,
        score=score,
        failure=failure,
    )


async def _asked(env: Environment, question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the environment, in a thread if its answers take waiting."""
    if getattr(env, "waits", False):
        return await asyncio.to_thread(lambda: _guarded(env.name, question, *args, **kwargs))
    return _guarded(env.name, question, *args, **kwargs)


def _guarded(name: str, question: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Whatever an environment raises, and is not our own word for something, breaks its episode alone."""
    try:
        return question(*args, **kwargs)
    except InternalizeError:
        raise
    except Exception as error:  # the classes of other packages cannot be named here
        first = (str(error).strip().splitlines() or [""])[0]
        raise InfrastructureError(f"{name} raised {type(error).__name__}: {first}".rstrip(": ")) from error


async def _score(episode: Episode, env: Environment, agent: Agent) -> float | None:
    """The environment's score, or the judge's if the environment has none but a claim.

    Raises InfrastructureError with the judge's reason if it gives no score: the episode is owed again.
    """
    score = score_of(env.name, await _asked(env, episode.score))
    claimed: Callable[[], Claim | None] | None = getattr(episode, "claim", None)
    if score is not None or claimed is None or agent.judge is None:
        return score
    claim = claim_of(env.name, await _asked(env, claimed))
    if claim is None:
        return None
    judgement = await agent.judge.judge(claim)
    if judgement.score is None:
        raise InfrastructureError(judgement.reason or f"{judgement.judge} gave no score")
    return judgement.score


async def _close(episode: Episode | None, env: Environment) -> None:
    """Close an episode that can be closed. What was played counts even if that breaks."""
    close: Callable[[], None] | None = getattr(episode, "close", None)
    if close is not None:
        with contextlib.suppress(InfrastructureError):
            await _asked(env, close)


class _Run:
    """The growing history of one episode. Clean: injections are kept with their step only (invariant 1)."""

    def __init__(self, episode_id: str, global_injection: Injection | None) -> None:
        self.episode_id = episode_id
        self.global_injection = global_injection
        self.prompt: tuple[Message, ...] = ()
        self.steps: list[Step] = []
        self.messages: list[Message] = []
        self.calls = 0

    async def play(self, episode: Episode, env: Environment, agent: Agent, injector: Injector) -> Termination:
        """Decide and act until the episode ends."""
        shown = Renderer.with_system(self.prompt, self.global_injection.text) if self.global_injection else self.prompt
        self.messages = list(self.prompt)
        for number in range(agent.limits.max_steps):
            injection = await injector.step_injection(self.messages)
            started = time.monotonic()
            request = ActionRequest(
                episode=self.episode_id,
                prompt=shown,
                steps=tuple(self.steps),
                tools=env.tools,
                hint=injection.text if injection else "",
                seed=int(content_hash([self.episode_id, number]), 16),
            )
            turn = await agent.act(request)
            if turn is None:
                return "context_full"
            message = self._numbered(turn.message)
            results = await self._execute(message.tool_calls, episode, env)
            seconds = round(time.monotonic() - started, 4)
            played = {**dict(turn), "message": message, "results": results}
            step = Step(**played, injection=injection, seconds=seconds)
            self.steps.append(step)
            self.messages += [step.message, *step.results]
            if step.ended:
                return "answered"
        return "max_steps"

    def _numbered(self, message: Message) -> Message:
        """The message with ids for its calls, counted over the episode."""
        calls = []
        for call in message.tool_calls:
            calls.append(call.model_copy(update={"id": f"call_{self.calls}"}))
            self.calls += 1
        return message.model_copy(update={"tool_calls": tuple(calls)})

    @staticmethod
    async def _execute(calls: Sequence[ToolCall], episode: Episode, env: Environment) -> tuple[Message, ...]:
        """A result for each call, in order, until one ends the episode. Without calls the environment is told so."""
        results = []
        for number, call in enumerate(calls or [None]):
            observation = observation_of(env.name, await _asked(env, episode.step, call))
            if observation is None:
                break
            results.append(result_of(calls, number, observation))
        return tuple(results)
