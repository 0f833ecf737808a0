"""The only agent loop: tasks in, trajectories out, each written as soon as its wave is done.

Episodes run in waves of a fixed composition. A wave that was cut off is run again whole and only the missing
records are added, so a resumed run samples in the same batches as an undisturbed one (invariants 10 and 11). Where
a server samples there are no such batches: only missing episodes are run, and each is written when it ends, so that
nothing is paid for twice.
Left out: what is injected (inject.py), who acts and how it is asked (actor.py). What must not change: an
infrastructure failure is an unscored trajectory that is owed again, never a zero (invariant 9); nothing that a
third-party environment raises ends a run; a spent budget stops the run with its work kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ParamSpec, TypeVar

from .actor import Acting, Actor, Moment
from .environments.said import claim_of, episode_of, observation_of, prompt_of, score_of
from .errors import Incomplete, InfrastructureError, InternalizeError
from .inject import Injector
from .records import (
    Action,
    Claim,
    Environment,
    Episode,
    Generation,
    Injection,
    Message,
    Step,
    Task,
    Termination,
    Trajectory,
    content_hash,
)
from .render import Renderer, Turn
from .store import append_jsonl, read_jsonl, write_jsonl

__all__ = ["MOST_OWED", "TRIES", "Actor", "Label", "Progress", "episode_id", "rollout", "run_episode"]

Progress = Callable[[int, int], None]  # episodes done, episodes in all
Job = tuple[Task, int]  # a task and the number of the attempt
T = TypeVar("T")
P = ParamSpec("P")
TRIES = 3  # episodes of an engine or environment that breaks are run this often before they stay owed
MOST_OWED = 0.1  # share of a stage that may stay unscored before the run stops as incomplete


@dataclass(frozen=True)
class Label:
    """What every trajectory of one stage has in common."""

    stage: str
    iteration: int
    seed: int
    checkpoint: str
    attempts: int = 1  # episodes a task


async def rollout(
    tasks: Sequence[Task],
    env: Environment,
    actor: Acting,
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
        trajectory = await run_episode(*job, env, actor, injector, label)
        if actor.apart and trajectory.failure is None:
            keep([trajectory])
        if progress:
            progress(min(start + next(ended), len(jobs)), len(jobs))
        return trajectory

    size = max(len(jobs), 1) if actor.apart else actor.wave
    for start in range(0, len(jobs), size):
        wave, wave_ids = jobs[start : start + size], ids[start : start + size]
        missing = [job for job, i in zip(wave, wave_ids, strict=True) if i not in done]
        ended = itertools.count(1 + (len(wave) - len(missing) if actor.apart else 0))
        if missing:
            actor.reset()
            found, stop = await _wave(missing if actor.apart else wave, play, actor)
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
    jobs: Sequence[Job], play: Callable[[Job], Awaitable[Trajectory]], actor: Acting
) -> tuple[list[Trajectory], InternalizeError | None]:
    """Every job once together, then what broke again, one by one; no more than `wave` together if they are `apart`.

    What no episode could hold (a spent budget, wrong use) comes back beside what was finished.
    """
    found, stop = await _gather(jobs, play, actor.wave if actor.apart else len(jobs))
    for _ in range(TRIES - 1):
        broken = [place for place, t in enumerate(found) if t is not None and t.failure is not None]
        if broken and stop is None:
            again, stop = await _gather([jobs[place] for place in broken], play, actor.wave if actor.apart else 1)
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
