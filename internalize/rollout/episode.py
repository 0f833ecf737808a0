"""The only agent loop: it plays one task and returns its trajectory.

An infrastructure failure is an unscored trajectory that has to be played again, never a score of zero, and no exception
of a third-party environment ends a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from internalize.environments.checks import claim_of, episode_of, observation_of, prompt_of, score_of
from internalize.errors import InfrastructureError, InternalizeError
from internalize.experience.inject import Injector
from internalize.inference.renderer import with_system
from internalize.interfaces import Agent, Environment, Episode
from internalize.records import (
    ActionRequest,
    Claim,
    Message,
    Step,
    Task,
    Termination,
    ToolCall,
    ToolSpec,
    Trajectory,
    content_hash,
    result_of,
)

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Label:
    """The fields that all trajectories of one stage share."""

    stage: str
    iteration: int
    seed: int
    checkpoint: str
    attempts: int = 1  # episodes of each task


def episode_id(task: Task, attempt: int, label: Label) -> str:
    """The id of a trajectory: a hash of task, stage and seed, not of its content."""
    return content_hash([label.stage, label.iteration, label.seed, task.id, attempt])


async def run_episode(
    task: Task, attempt: int, env: Environment, agent: Agent, injector: Injector, label: Label
) -> Trajectory:
    """Play one episode. A failure of the engine or the environment becomes `failure`, never an exception."""
    name = episode_id(task, attempt, label)
    run = _Run(name, env, agent, injector)
    termination: Termination = "failed"
    score, failure, episode = None, None, None
    try:
        episode = episode_of(env.name, await _call(env, env.episode, task))
        prompt = prompt_of(env.name, await _call(env, episode.prompt))
        instructions = agent.instructions(env.tools)
        run.prompt, run.tools = with_system(prompt, instructions), () if instructions else env.tools
        termination = await run.play(episode)
        score = await _score(episode, env, agent)
    except InfrastructureError as error:
        failure = str(error) or type(error).__name__
        termination = "failed"
    finally:
        agent.release(name)
        if close := getattr(episode, "close", None):
            with contextlib.suppress(InfrastructureError):  # the episode counts even if it cannot be closed
                await _call(env, close)
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
        tools=run.tools,
        global_injection=run.global_injection,
        steps=tuple(run.steps),
        termination=termination,
        score=score,
        failure=failure,
    )


async def _call(env: Environment, method: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call the environment, in a thread if its methods wait for something.

    Any exception from outside this package fails this episode alone: it becomes an InfrastructureError.
    """

    def guarded() -> T:
        try:
            return method(*args, **kwargs)
        except InternalizeError:
            raise
        except Exception as error:  # exception classes of other packages cannot be named here
            first = (str(error).strip().splitlines() or [""])[0]
            raise InfrastructureError(f"{env.name} raised {type(error).__name__}: {first}".rstrip(": ")) from error

    # Exceptions are converted inside the thread: a StopIteration would leave the future unresolved.
    return await asyncio.to_thread(guarded) if getattr(env, "waits", False) else guarded()


async def _score(episode: Episode, env: Environment, agent: Agent) -> float | None:
    """The environment's score, or the judge's if the environment gives a claim instead.

    Raises InfrastructureError with the reason if the judge gives no score, so that the episode is played again.
    """
    score = score_of(env.name, await _call(env, episode.score))
    claim_method: Callable[[], Claim | None] | None = getattr(episode, "claim", None)
    if score is not None or claim_method is None or agent.judge is None:
        return score
    claim = claim_of(env.name, await _call(env, claim_method))
    if claim is None:
        return None
    judgement = await agent.judge.judge(claim)
    if judgement.score is None:
        raise InfrastructureError(judgement.reason or f"{judgement.judge} gave no score")
    return judgement.score


class _Run:
    """The growing history of one episode. An injection is stored in its step only, never in the history."""

    def __init__(self, episode_id: str, env: Environment, agent: Agent, injector: Injector) -> None:
        self.episode_id, self.env, self.agent, self.injector = episode_id, env, agent, injector
        self.global_injection = injector.global_injection()
        self.prompt: tuple[Message, ...] = ()
        self.tools: tuple[ToolSpec, ...] = ()
        self.steps: list[Step] = []
        self.calls = itertools.count()

    async def play(self, episode: Episode) -> Termination:
        """Alternate between agent and environment until the episode ends."""
        injected = self.global_injection
        prompt = with_system(self.prompt, injected.text) if injected else self.prompt
        messages = list(self.prompt)
        for number in range(self.agent.limits.max_steps):
            injection = await self.injector.step_injection(messages)
            started = time.monotonic()
            request = ActionRequest(
                episode=self.episode_id,
                prompt=prompt,
                steps=tuple(self.steps),
                tools=self.env.tools,
                hint=injection.text if injection else "",
                seed=int(content_hash([self.episode_id, number]), 16),
            )
            turn = await self.agent.act(request)
            if turn is None:
                if not self.steps:  # the policy decided nothing: a long prompt is not its failure
                    raise InfrastructureError("the prompt alone leaves no room for an answer (model.max_context)")
                return "context_full"
            # Call ids are unique in the whole episode.
            calls = tuple(c.model_copy(update={"id": f"call_{next(self.calls)}"}) for c in turn.message.tool_calls)
            message = turn.message.model_copy(update={"tool_calls": calls})
            results = _told(await self._execute(calls, episode), turn.problem)
            seconds = round(time.monotonic() - started, 4)
            step = Step(**{**dict(turn), "message": message}, results=results, injection=injection, seconds=seconds)
            self.steps.append(step)
            messages += [message, *results]
            if step.ended:
                return "answered"
        return "max_steps"

    async def _execute(self, calls: Sequence[ToolCall], episode: Episode) -> tuple[Message, ...]:
        """A result for each call, in order, until one ends the episode. A turn without calls is one step with None."""
        results = []
        for number, call in enumerate(calls or [None]):
            observation = observation_of(self.env.name, await _call(self.env, episode.step, call))
            if observation is None:
                break
            results.append(result_of(calls, number, observation))
        return tuple(results)


def _told(results: tuple[Message, ...], problem: str) -> tuple[Message, ...]:
    """The results with a note on an invalid call: it replaces the answer to a turn without calls, else is added."""
    if not problem or not results:
        return results
    told, last = f"A call could not be made: {problem}.", results[-1]
    content = told if last.role == "user" else f"{last.text}\n{told}"
    return (*results[:-1], last.model_copy(update={"content": content}))
