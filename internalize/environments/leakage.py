"""Finds tasks of different splits that show the same world: equal prompts, and equal answers to the same calls.

Ids and questions may differ only in a hidden seed; then the test set is a training set. Among tasks with equal prompts,
all play the reference solution of one of them, and those with equal answers stay together. Several references are
played, because a reference may differ each time. Equal prompts alone prove nothing: the calls must have shown
something. An environment whose references show little may have `looks(task)`, which gives the calls to play instead.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from internalize.interfaces import Environment, Episode
from internalize.records import Task, ToolCall

_ENOUGH = 5  # most references played by tasks that still look alike
_MOST_EPISODES = 20_000  # tasks that would need more are not compared
_Calls = tuple[ToolCall, ...]


class Overlap(NamedTuple):
    """Tasks that show the same world as a task in another split, and how many tasks were not compared."""

    tasks: list[Task]
    not_compared: int


class TaskView(NamedTuple):
    """A task, the prompt of its episodes, and calls that show more of its world."""

    task: Task
    prompt: str
    calls: _Calls


def find_overlap(env: Environment, views: Sequence[TaskView]) -> Overlap:
    """Tasks that look the same as one of an earlier split in `views`."""
    looks: Callable[[Task], Sequence[ToolCall]] | None = getattr(env, "looks", None)
    comparison = _Comparison(env)
    for group in _across_splits(views, lambda view: (" ".join(view.prompt.split()).casefold(), view.task.answer)):
        comparison.add([view._replace(calls=tuple(looks(view.task))) for view in group] if looks else group)
    found = {(task.split, task.id) for task in comparison.found}
    return Overlap([v.task for v in views if (v.task.split, v.task.id) in found], comparison.not_compared)


def _across_splits(group: Iterable[TaskView], key: Callable[[TaskView], Hashable]) -> list[list[TaskView]]:
    """The parts of a group that have the same key and tasks of more than one split."""
    parts: defaultdict[Hashable, list[TaskView]] = defaultdict(list)
    for view in group:
        parts[key(view)].append(view)
    return [part for part in parts.values() if len({view.task.split for view in part}) > 1]


class _Comparison:
    def __init__(self, env: Environment) -> None:
        self.found: list[Task] = []
        self.not_compared = 0
        self._env, self._episodes = env, 0

    def add(self, group: Sequence[TaskView]) -> None:
        """Split a group until its parts cannot be told apart, and note the tasks of those parts."""
        waiting: list[tuple[Sequence[TaskView], dict[_Calls, bool]]] = [(group, {})]
        while waiting:
            part, played = waiting.pop()
            own = {view.calls for view in part if view.calls}
            unplayed, lent = own - played.keys(), own & played.keys()
            if unplayed and len(lent) < _ENOUGH:
                waiting += self._split(part, played, max(unplayed, key=lambda calls: (len(calls), repr(calls))))
            elif any(played[calls] for calls in lent):
                self.found += [view.task for view in part if view.task.split != part[0].task.split]

    def _split(
        self, part: Sequence[TaskView], played: Mapping[_Calls, bool], calls: _Calls
    ) -> list[tuple[Sequence[TaskView], dict[_Calls, bool]]]:
        """The parts that answer `calls` alike, each with the calls played so far and whether they showed anything."""
        self._episodes += len(part)
        if self._episodes > _MOST_EPISODES:
            self.not_compared += len(part)
            return []
        answers = {view.task.id: _observations(self._env, view.task, calls) for view in part}
        parts = _across_splits(part, lambda view: answers[view.task.id])
        return [(same, {**played, calls: any(answers[same[0].task.id])}) for same in parts]


def _observations(env: Environment, task: Task, calls: _Calls) -> tuple[str | None, ...]:
    """The answers of an episode. A failed one equals no other; the check of references reports it."""
    observations: list[str | None] = []
    episode: Episode | None = None
    try:
        episode = env.episode(task)
        for call in calls:
            observations.append(episode.step(call))
            if observations[-1] is None:
                break
    except Exception:  # noqa: BLE001 - an environment of another package may raise anything
        return (f"broke: {task.id}",)
    finally:
        close: Callable[[], None] | None = getattr(episode, "close", None)
        with suppress(Exception):
            if close:
                close()
    return tuple(observations)
