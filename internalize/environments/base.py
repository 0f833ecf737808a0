"""Base classes of the environments here: single-use episodes, tasks by split, options that are checked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError

from internalize.errors import InfrastructureError, TaskError
from internalize.interfaces import Judge
from internalize.records import Claim, Message, Task, ToolCall
from internalize.runs.store import first_problem

from .loop_thread import finish

P = ParamSpec("P")
M = TypeVar("M", bound=BaseModel)
UNKNOWN = "Unknown action."


class SingleUseEpisode:
    """An episode that keeps its prompt and its end; a subclass implements `observe` and `score`."""

    def __init__(self, env: str, system: str, question: str) -> None:
        self._env, self._over = env, False
        self._prompt = (Message(role="system", content=system), Message(role="user", content=question))

    def prompt(self) -> tuple[Message, ...]:
        """The system message and the question."""
        return self._prompt

    def step(self, call: ToolCall | None) -> str | None:
        """The observation after `call`, or None when the episode is over. Raises InfrastructureError after the end."""
        if self._over:
            raise InfrastructureError(f"{self._env}: the episode is over; episodes are single-use")
        observation = self.observe(call)
        if observation is None:
            self._over = True
        return observation

    def observe(self, call: ToolCall | None) -> str | None:
        """The observation after `call`; None ends the episode."""
        raise NotImplementedError


class AnswerEpisode(SingleUseEpisode):
    """An episode that ends with the tool `answer`, which has one argument."""

    def __init__(self, env: str, system: str, task: Task) -> None:
        super().__init__(env, system, task.question)
        self._task = task
        self._answer: str | None = None

    def step(self, call: ToolCall | None) -> str | None:
        """The observation after `call`, or None after `answer`. Raises InfrastructureError after the end."""
        if call is not None and call.name == "answer" and not self._over:
            self._answer, self._over = call.argument, True
            return None
        return super().step(call)

    def claim(self) -> Claim | None:
        """The answer and the reference, for a judge; None if one of them is missing."""
        if not self._answer or self._task.answer is None:
            return None
        return Claim(question=self._task.question, reference=self._task.answer, answer=self._answer)


class SplitTasks:
    """An environment whose tasks are listed by split in `_tasks`."""

    name: str
    _tasks: Mapping[str, tuple[Task, ...]]

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._tasks)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Tasks of `split` in a fixed order. Raises TaskError for an unknown split."""
        if split not in self._tasks:
            raise TaskError(f"{self.name}: no split {split!r} (there are {', '.join(self._tasks) or 'none'})")
        return self._tasks[split]


def check_names(env: str, option: str, names: Iterable[str], known: Collection[str]) -> None:
    """Raises TaskError for the first of `names` that is not known."""
    if unknown := [name for name in names if name not in known]:
        raise TaskError(f"{env}: {option}: no {unknown[0]!r} (there are {', '.join(known)})")


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that checks its options against its annotations.

    It raises TaskError for the first option of the wrong type or out of the bounds of its `Annotated` field.
    """

    @wraps(init)
    def checking(*args: P.args, **kwargs: P.kwargs) -> None:
        given = inspect.signature(init).bind(*args, **kwargs).arguments
        types = get_type_hints(init, include_extras=True)
        for option in given.keys() & types.keys():
            try:
                TypeAdapter(types[option]).validate_python(given[option], strict=True)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]["msg"]
                what = f"{option} = {given[option]!r}: {problem[0].lower()}{problem[1:]}"
                raise TaskError(f"env.options of {getattr(args[0], 'name', '')}: {what}") from error
        init(*args, **kwargs)

    return checking


def read_options(env: str, model: type[M], options: Mapping[str, Any]) -> M:
    """The options as a record. Raises TaskError for the first that is unknown or out of range."""
    try:
        return model(**options)
    except ValidationError as error:
        raise TaskError(f"env.options of {env}: {first_problem(error)}") from error


def graded(env: str, judge: Judge, task: Task, answer: str) -> float:
    """The judge's score of an answer, for environments whose `score` waits for the judge.

    Raises InfrastructureError if the judge gives no score.
    """
    claim = Claim(question=task.question, reference=task.answer or "", answer=answer)
    judgement = finish(judge.judge(claim))
    if judgement.score is None:
        raise InfrastructureError(f"{env}: {judgement.reason}")
    return judgement.score
