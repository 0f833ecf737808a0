"""The only agent loop: tasks in, trajectories out, each written as soon as its wave is done.

Episodes run in waves of a fixed composition. A wave that was cut off is run again whole and only the missing
records are added, so a resumed run samples in the same batches as an undisturbed one (invariants 10 and 11).
Left out: what is injected (inject.py) and how it lands in the prompt (render.py). What must not change: an
infrastructure failure is an unscored trajectory that is owed again, never a zero (invariant 9).
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import RolloutConfig
from .errors import Incomplete, InfrastructureError
from .inject import Injector
from .records import (
    Action,
    Engine,
    Environment,
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

Progress = Callable[[int, int], None]  # episodes done, episodes in all
TRIES = 3  # episodes of an engine or environment that breaks are run this often before they stay owed
MOST_OWED = 0.1  # share of a stage that may stay unscored before the run stops as incomplete


@dataclass(frozen=True)
class Actor:
    """Who acts: an engine, how it reads and writes, and the limits of an episode."""

    engine: Engine
    renderer: Renderer
    limits: RolloutConfig
    max_context: int
    wave: int  # episodes that run together


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
    actor: Actor,
    injector: Injector,
    label: Label,
    *,
    path: Path,
    progress: Progress | None = None,
) -> list[Trajectory]:
    """Run every task `label.attempts` times and append the trajectories to `path`; those already there are kept.

    Raises Incomplete when more than `MOST_OWED` of the episodes stay unscored after `TRIES` tries.
    """
    jobs = [(task, attempt) for task in tasks for attempt in range(label.attempts)]
    ids = [episode_id(task, attempt, label) for task, attempt in jobs]
    done = _unbroken(path)
    ended = itertools.count(1)

    async def play(task: Task, attempt: int) -> Trajectory:
        trajectory = await run_episode(task, attempt, env, actor, injector, label)
        if progress:
            progress(min(start + next(ended), len(jobs)), len(jobs))
        return trajectory

    for start in range(0, len(jobs), actor.wave):
        wave, wave_ids = jobs[start : start + actor.wave], ids[start : start + actor.wave]
        ended = itertools.count(1)
        if any(i not in done for i in wave_ids):
            actor.engine.reset()  # reused prefixes would change the last bits of logprobs from a run to its resumption
            found = await _wave(wave, play)
            append_jsonl(path, [t for t in found if t.id not in done])
            done |= {t.id: t for t in found if t.id not in done}
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
    jobs: Sequence[tuple[Task, int]], play: Callable[[Task, int], Awaitable[Trajectory]]
) -> list[Trajectory]:
    """Every job once together, then what broke again, one by one."""
    found = list(await asyncio.gather(*(play(task, attempt) for task, attempt in jobs)))
    for _ in range(TRIES - 1):
        for place, (task, attempt) in enumerate(jobs):
            if found[place].failure is not None:
                found[place] = await play(task, attempt)
    return found


def episode_id(task: Task, attempt: int, label: Label) -> str:
    """The id of a trajectory: what was asked, when and with which seed, not what came out."""
    return content_hash([label.stage, label.iteration, label.seed, task.id, attempt])


async def run_episode(
    task: Task, attempt: int, env: Environment, actor: Actor, injector: Injector, label: Label
) -> Trajectory:
    """One episode. What breaks in the engine or the environment becomes `failure`, never an exception."""
    name = episode_id(task, attempt, label)
    run = _Run(name, injector.whole())
    termination: Termination = "failed"
    score, failure = None, None
    try:
        episode = env.episode(task)
        instructions = actor.renderer.protocol.instructions(env.tools)
        run.begin(actor.renderer.with_system(episode.prompt(), instructions))
        termination = await run.play(episode.step, env, actor, injector)
        score = episode.score()
    except InfrastructureError as error:
        failure = str(error) or type(error).__name__
        termination = "failed"
    finally:
        actor.engine.release(name)
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

    async def play(
        self,
        step: Callable[..., str | None],
        env: Environment,
        actor: Actor,
        injector: Injector,
    ) -> Termination:
        """Decide and act until the episode ends."""
        shown = actor.renderer.with_system(self.prompt, self.whole.text) if self.whole else self.prompt
        for number in range(actor.limits.max_steps):
            injection = await injector.at(self.messages)
            ids = actor.renderer.context(shown, self.turns, injection.text if injection else "").ids
            if len(ids) + actor.limits.max_action_tokens > actor.max_context:
                return "context_full"
            started = time.monotonic()
            seed = int(content_hash([self.name, number]), 16)
            generation = await actor.engine.generate(ids, conversation=self.name, seed=seed)
            action = actor.renderer.protocol.parse(generation.text, env.tools)
            observation = step(action)
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
