"""Turns the calls that an endpoint recorded into scored trajectories for `extract` and `distill`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from internalize.config.schema import Config
from internalize.environments.callables import load_function
from internalize.errors import DataError, UserError
from internalize.experience.redact import Redactor
from internalize.inference.endpoints import endpoint_chat
from internalize.judge import build as build_judge
from internalize.records import Claim, Task, Trajectory
from internalize.runs.files import read_numbered
from internalize.runs.readers import records
from internalize.serve.history import trajectories_of
from internalize.serve.records import CALLS, SCORES, EpisodeScore, RecordedCall

ENV = "served"


class ScoreLine(BaseModel):
    """One line of a file of scores: `score` (0 to 1), `success`, or a `reference` answer for the recipe's judge."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    episode: str
    score: float | None = Field(None, ge=0, le=1, allow_inf_nan=False)
    success: bool | None = None
    reference: str | None = None
    note: str = ""


def served_episodes(folder: Path, config: Config, scores: Path | None = None) -> list[Trajectory]:
    """The trajectories that an endpoint recorded in `folder`; an episode with branches or sub-agents has several.

    A posted score counts first, then the score of the file, then the recipe's verifier. An episode without any stays
    unscored. Raises UserError for a folder without calls, DataError for a line that cannot be read.
    """
    if not (folder / CALLS).exists():
        raise UserError(f"{folder}: nothing was recorded there (no {CALLS})")
    calls: dict[str, list[RecordedCall]] = {}
    for call in records(folder / CALLS, RecordedCall):
        calls.setdefault(call.episode, []).append(call)
    posted = {score.episode: score.score for score in records(folder / SCORES, EpisodeScore)}
    lines = _lines(scores, calls.keys()) if scores else {}
    verify = load_function(config.serve.verifier, "serve.verifier") if config.serve.verifier else None
    judge = build_judge(config.judge, lambda name: endpoint_chat(config, name), Redactor.of(config.redact).clean)

    async def scored() -> list[Trajectory]:
        found, attempts = [], Counter[str]()
        for name, made in calls.items():
            branches = trajectories_of(made)
            score = posted.get(name)
            line = lines.get(name)
            if score is None and line is not None:
                score = await _score_of(line, branches[0], judge.judge)
            if score is None and verify is not None:
                score = verified(verify, task_of(branches[0]), branches[0], "serve.verifier")
            for branch in branches:
                attempt, attempts[branch.task_id] = attempts[branch.task_id], attempts[branch.task_id] + 1
                found.append(branch.model_copy(update={"score": score, "attempt": attempt}))
        return found

    return asyncio.run(scored())


def task_of(trajectory: Trajectory) -> Task:
    """The question of an episode as a task without an answer."""
    return Task.new(ENV, trajectory.split, trajectory.question)


def verified(verify: Callable[..., Any], task: Task, trajectory: Trajectory, key: str) -> float | None:
    """A verifier's score of an episode. Raises UserError if the verifier fails or returns anything but a score."""
    try:
        value = verify(task, trajectory)
        score = None if value is None else float(value)
    except Exception as error:
        raise UserError(f"{key} failed at episode {trajectory.id} ({type(error).__name__}: {error})") from error
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"{key} gave episode {trajectory.id} the score {score}, which is not from 0 to 1")
    return score


async def _score_of(line: ScoreLine, trajectory: Trajectory, judge: Callable[[Claim], Any]) -> float | None:
    if line.score is not None or line.success is not None:
        return line.score if line.score is not None else float(bool(line.success))
    if line.reference is None or trajectory.answer is None:
        return None if line.reference is None else 0.0
    claim = Claim(question=trajectory.question, reference=line.reference, answer=trajectory.answer)
    score: float | None = (await judge(claim)).score
    return score


def _lines(path: Path, known: Any) -> dict[str, ScoreLine]:
    found: dict[str, ScoreLine] = {}
    for number, line in read_numbered(path, ScoreLine):
        if line.episode not in known:
            raise DataError(f"{path}, line {number}: no episode {line.episode!r} was recorded")
        found[line.episode] = line
    return found


def summary(found: Sequence[Trajectory]) -> str:
    """One line on the recorded episodes."""
    scored = [t.score for t in found if t.score is not None]
    own = [step for t in found for step in t.steps if not step.left_out]
    success = f"success {sum(scored) / len(scored):.1%}" if scored else "nothing scored"
    ids = sum(bool(step.token_ids) for step in own)
    unscored = len(found) - len(scored)
    return f"{len(found)} trajectories, {unscored} unscored, {success}; {len(own)} steps, {ids} with token ids"
