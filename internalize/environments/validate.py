"""Proof of an environment: every reference solution scores 1.0, tasks are disjoint over splits, guessing fails.

Left out: models. The closed-book guesser answers each family with its most frequent answer in the first split.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
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
    seen: dict[str, str] = {}
    guesses: dict[str, str] = {}
    doubled = 0
    for split in named:
        tasks = env.tasks(split)
        guesses = guesses or _commonest(tasks)
        failed = [task for task in tasks if replay(env, task, env.solve(task)) != 1.0]
        doubled += sum(seen.setdefault(task.id, split) != split for task in tasks)
        turns = [len(env.solve(task)) for task in tasks]
        guessed = sum(task.answer == guesses.get(task.family) for task in tasks) / len(tasks)
        families = ", ".join(f"{name} {count}" for name, count in sorted(Counter(t.family for t in tasks).items()))
        text = f"{split}: reference {len(tasks) - len(failed)}/{len(tasks)}, {min(turns)}-{max(turns)} steps, closed-book guesser {guessed:.1%} ({families})"
        yield Row(text + (f"; fails: {failed[0].id} {failed[0].question!r}" if failed else ""), len(failed))
    yield Row(f"tasks in more than one split: {doubled}", doubled)


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
