"""Proof of an environment: every reference solution scores 1.0, tasks are disjoint over splits, guessing fails.

Left out: models. The closed-book guesser answers each family with its most frequent answer in the first split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Action, Environment, Task


@dataclass(frozen=True)
class Row:
    """One line of the proof; `failed` counts tasks that are not proved."""

    text: str
    failed: int = 0


def validate(env: Environment, splits: Sequence[str]) -> Iterator[Row]:
    """A row a split, then one for disjointness."""
    named = tuple(splits) or tuple(getattr(env, "splits", lambda: ("train", "dev", "test"))())
    homes: dict[str, str] = {}
    doubled: list[Task] = []
    guesses: dict[str, str] = {}
    for split in named:
        tasks = env.tasks(split)
        guesses = guesses or _commonest(tasks)
        doubled += [task for task in tasks if homes.setdefault(task.id, split) != split]
        yield _proof(env, split, tasks, guesses)
    yield Row(f"tasks in more than one split: {len(doubled)}{_first('', doubled)}", len(doubled))


def _proof(env: Environment, split: str, tasks: Sequence[Task], guesses: Mapping[str, str]) -> Row:
    if not tasks:
        return Row(f"{split}: no tasks", 1)
    solutions = [env.solve(task) for task in tasks]
    failed = [t for t, actions in zip(tasks, solutions, strict=True) if replay(env, t, actions) != 1.0]
    lengths = [len(actions) for actions in solutions]
    guessed = sum(task.answer == guesses.get(task.family) for task in tasks) / len(tasks)
    families = ", ".join(f"{name} {count}" for name, count in sorted(Counter(t.family for t in tasks).items()))
    text = (
        f"{split}: reference {len(tasks) - len(failed)}/{len(tasks)}, {min(lengths)}-{max(lengths)} steps, "
        f"closed-book guesser {guessed:.1%} ({families})"
    )
    return Row(text + _first("; fails", failed), len(failed))


def _first(what: str, tasks: Sequence[Task]) -> str:
    return f"{what}: {tasks[0].id} {tasks[0].question!r}" if tasks else ""


def replay(env: Environment, task: Task, actions: Sequence[Action]) -> float | None:
    """The score of a scripted episode; None if it broke or did not end."""
    try:
        episode = env.episode(task)
        for number, action in enumerate(actions):
            if episode.step(action) is None:
                return episode.score() if number == len(actions) - 1 else None
    except (InfrastructureError, TaskError):
        return None
    return None


def _commonest(tasks: Sequence[Task]) -> dict[str, str]:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        answers[task.family][task.answer or ""] += 1
    return {family: counts.most_common(1)[0][0] for family, counts in answers.items()}
