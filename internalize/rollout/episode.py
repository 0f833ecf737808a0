"""The only agent loop: one task in, one trajectory out.

An infrastructure failure is an unscored trajectory that is owed again, never a zero. Nothing that an environment of
another package raises ends a run.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from internalize.environments.checks import claim_of, episode_of, observation_of, prompt_of, score_of
from internalize.errors import InfrastructureError, InternalizeError
from internalize.experience.inject import Injector
from internalize.inference.agent import Acting, Moment
from internalize.inference.renderer import Renderer, Turn
from internalize.interfaces import Environment, Episode
from internalize.records import (
    Action,
    Claim,
    Generation,
    Injection,
    Message,
    Step,
    Task,
    Termination,
    Trajectory,
    content_hash,
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
    task: Task, attempt: int, env: Environment, actor: Acting, injector: Injector, label: Label
) -> Trajectory:
    """One episode. What breaks in the engine or the environment becomes `failure`, never an exception."""
    name = episode_id(task, attempt, label)
    run = _Run(name, injector.whole())
    termination: Termination = "failed"
    score, failure, episode = None, None, None
    try:
        episode = episode_of(env.name, await _asked(env, env.episode, task))
        instructions = actor.protocol.instructions(env.tools)
        prompt = prompt_of(env.name, await _asked(env, episode.prompt))
        run.begin(Renderer.with_system(prompt, instructions))
        termination = await run.play(episode, env, actor, injector)
        score = await _score(episode, env, actor)
    except InfrastructureError as error:
        failure = str(error) or type(error).__name__
        termination = "failed"
    finally:
        actor.release(name)
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
        global_injection=run.whole,
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


async def _score(episode: Episode, env: Environment, actor: Acting) -> float | None:
    """The environment's score, or the judge's if the environment has none but a claim.

    Raises InfrastructureError with the judge's reason if it gives no score: the episode is owed again.
    """
    score = score_of(env.name, await _asked(env, episode.score))
    claimed: Callable[[], Claim | None] | None = getattr(episode, "claim", None)
    if score is not None or claimed is None or actor.judge is None:
        return score
    claim = claim_of(env.name, await _asked(env, claimed))
    if claim is None:
        return None
    judgement = await actor.judge.judge(claim)
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

    def __init__(self, name: str, whole: Injection | None) -> None:
        self.name = name
        self.whole = whole
        self.prompt: tuple[Message, ...] = ()
        self.steps: list[Step] = []
        self.turns: list[Turn] = []
        self.messages: list[Message] = []

    def begin(self, prompt: tuple[Message, ...]) -> None:
        """Start from the clean `prompt`."""
        self.prompt = prompt
        self.messages = list(prompt)

    async def play(self, episode: Episode, env: Environment, actor: Acting, injector: Injector) -> Termination:
        """Decide and act until the episode ends."""
        shown = Renderer.with_system(self.prompt, self.whole.text) if self.whole else self.prompt
        for number in range(actor.limits.max_steps):
            injection = await injector.at(self.messages)
            hint = injection.text if injection else ""
            seed = int(content_hash([self.name, number]), 16)
            started = time.monotonic()
            texts = [step.action_text for step in self.steps]
            generation = await actor.act(Moment(self.name, shown, self.turns, texts, hint, seed))
            if generation is None:
                return "context_full"
            action = actor.protocol.parse(generation.text, env.tools)
            observation = observation_of(env.name, await _asked(env, episode.step, action))
            self._keep(generation, injection, action, observation, time.monotonic() - started)
            if observation is None:
                return "answered"
        return "max_steps"

    def _keep(
        self,
        generation: Generation,
        injection: Injection | None,
        action: Action | None,
        observation: str | None,
        seconds: float,
    ) -> None:
        step = Step(
            injection=injection,
            action_text=generation.text,
            action=action,
            token_ids=generation.token_ids,
            logprobs=generation.logprobs,
            observation=observation,
            finish=generation.finish,
            seconds=round(seconds, 4),
        )
        self.steps.append(step)
        self.turns.append(Turn.of(step))
        self.messages.append(Message(role="assistant", content=generation.text))
        self.messages.append(Message(role="user", content=observation or ""))
