"""Tasks of different splits that cannot be told apart: equal prompts, and equal answers to the same actions.

Ids and questions may differ in a hidden seed alone, and then a test set is a training set. Of tasks with equal prompts
one after the other lends its reference, which all of them play; those that answer alike stay together. So a reference
that comes out another way each time does not hide that two worlds are one.
Left out: what no reference shows. An environment whose references look at little may have `looks(task)`, actions to be
played instead. What must not change: a prompt that many tasks share is no proof by itself, something has to be shown.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from internalize.interfaces import Environment, Episode
from internalize.records import Task, ToolCall

_ENOUGH = 5  # references of those that still stay together
_MOST_PLAYED = 20_000  # episodes; what is left then is not compared
_Path = tuple[ToolCall, ...]


class Alike(NamedTuple):
    """Tasks that are like one of another split, and how many could not be compared for want of episodes."""

    tasks: list[Task]
    left: int


class Shown(NamedTuple):
    """A task, what its episodes begin with, and what may be played to see more."""

    task: Task
    prompt: str
    actions: _Path


def alike(env: Environment, shown: Sequence[Shown]) -> Alike:
    """Tasks that are like one of another split, which comes earlier in `shown`."""
    looks: Callable[[Task], Sequence[ToolCall]] | None = getattr(env, "looks", None)
    compared = _Compared(env)
    for group in _mixed(shown, lambda one: (" ".join(one.prompt.split()).casefold(), one.task.answer)):
        best = [one._replace(actions=tuple(looks(one.task))) for one in group] if looks else group
        compared.tell(best)
    found = {(task.split, task.id) for task in compared.found}
    return Alike([one.task for one in shown if (one.task.split, one.task.id) in found], compared.left)


def _mixed(group: Iterable[Shown], mark: Callable[[Shown], Hashable]) -> list[list[Shown]]:
    """Parts of a group with the same mark, of more than one split."""
    parts: defaultdict[Hashable, list[Shown]] = defaultdict(list)
    for one in group:
        parts[mark(one)].append(one)
    return [part for part in parts.values() if len({one.task.split for one in part}) > 1]


class _Compared:
    def __init__(self, env: Environment) -> None:
        self.found: list[Task] = []
        self.left = 0  # tasks that were not compared to the end
        self._env, self._episodes = env, 0

    def tell(self, group: Sequence[Shown]) -> None:
        """Split a group up, and what comes of it, and note what stays together."""
        waiting: list[tuple[Sequence[Shown], dict[_Path, bool]]] = [(group, {})]
        while waiting:
            part, played = waiting.pop()
            own = {one.actions for one in part if one.actions}
            left, lent = own - played.keys(), own & played.keys()
            if left and len(lent) < _ENOUGH:
                waiting += self._parted(part, played, max(left, key=lambda path: (len(path), repr(path))))
            elif any(played[path] for path in lent):
                self.found += [one.task for one in part if one.task.split != part[0].task.split]

    def _parted(
        self, part: Sequence[Shown], played: Mapping[_Path, bool], path: _Path
    ) -> list[tuple[Sequence[Shown], dict[_Path, bool]]]:
        """Those that answer alike to a path, with what was played so far and whether it showed them anything."""
        self._episodes += len(part)
        if self._episodes > _MOST_PLAYED:
            self.left += len(part)
            return []
        answers = {one.task.id: _answers(self._env, one.task, path) for one in part}
        parts = _mixed(part, lambda one: answers[one.task.id])
        return [(same, {**played, path: any(answers[same[0].task.id])}) for same in parts]


def _answers(env: Environment, task: Task, actions: Sequence[ToolCall]) -> tuple[str | None, ...]:
    """What an episode says to the actions; what breaks is like nothing else."""
    answers: list[str | None] = []
    episode: Episode | None = None
    try:
        episode = env.episode(task)
        for action in actions:
            answers.append(episode.step(action))
            if answers[-1] is None:
                break
    except Exception:  # noqa: BLE001 - that it breaks is said elsewhere
        return (f"broke: {task.id}",)
    finally:
        _close(episode)
    return tuple(answers)


def _close(episode: Episode | None) -> None:
    close: Callable[[], None] | None = getattr(episode, "close", None)
    with suppress(Exception):  # that it does not close is said elsewhere
        if close:
            close()
