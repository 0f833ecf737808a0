"""Proof of an environment without a model: its references score 1.0, its tasks are apart, nothing wins for free.

A row a split: reference solutions, and what a guesser scores that gives a family's most frequent answer of the first
split. Then rows over everything: tasks in two splits (by id, by question and state, and by what they show), tasks won
without acting, answers that stand in the prompt, episodes that go on after their end or do not close, sizes, speed.
Left out: models. What must not change: a row that is not proved says how many tasks and names the first.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from internalize.errors import InfrastructureError, InternalizeError, TaskError
from internalize.interfaces import Environment, Episode
from internalize.records import Claim, Task, ToolCall, content_hash

from .checks import observation_of, prompt_of, score_of
from .leakage import Shown, alike

BY_CHANCE = 0.05  # share of answers that may stand in their prompts: short ones do so by chance
_SHORTEST = 4  # characters of an answer that is looked for


@dataclass(frozen=True)
class Row:
    """One line of the proof; `failed` counts tasks that are not proved."""

    text: str
    failed: int = 0


@dataclass
class _Seen:
    """What the replays of all splits have in common."""

    size: Callable[[str], int] | None
    tasks: int = 0
    steps: int = 0
    seconds: float = 0.0
    free: list[Task] = field(default_factory=list)
    told: list[Task] = field(default_factory=list)
    loose: list[Task] = field(default_factory=list)
    broke: dict[str, str] = field(default_factory=dict)  # what was said when the episode of a task broke, by its id
    shown: list[Shown] = field(default_factory=list)
    longest: dict[str, str] = field(default_factory=dict)  # prompt, observation, episode: the longest text of each

    def text(self, kind: str, text: str) -> None:
        """Keep the longest."""
        if len(text) > len(self.longest.get(kind, "")):
            self.longest[kind] = text

    def sizes(self) -> str:
        """The longest texts in characters, and in tokens if they can be counted."""
        parts = [f"{kind} {len(text):,} characters{self._tokens(text)}" for kind, text in self.longest.items()]
        return f"longest {', '.join(parts)}"

    def _tokens(self, text: str) -> str:
        return f" ({self.size(text):,} tokens)" if self.size else ""


def validate(env: Environment, splits: Sequence[str], *, tokens: Callable[[str], int] | None = None) -> Iterator[Row]:
    """A row a split, then those over all of them. `tokens` counts the tokens of a text."""
    named = tuple(splits) or tuple(getattr(env, "splits", lambda: ("train", "dev", "test"))())
    homes: dict[str, str] = {}
    doubled: list[Task] = []
    twice: list[Task] = []
    guesses: dict[str, str] = {}
    seen = _Seen(tokens)
    for split in named:
        tasks = _listed(env, split)
        guesses = guesses or _commonest(tasks)
        doubled += [task for task in tasks if {homes.setdefault(mark, split) for mark in _marks(task)} != {split}]
        twice += _repeated(tasks)
        yield _proof(env, split, tasks, guesses, seen)
    yield _row("tasks in more than one split", doubled)
    same = alike(env, seen.shown)
    left = f" ({same.left} tasks not compared: too many look alike at first)" if same.left else ""
    yield _row(f"tasks that show the world of one in another split{left}", same.tasks)
    if twice:
        yield _row("tasks twice in a split", twice)
    yield _row("tasks won without acting", seen.free)
    yield _row("answers that stand in the prompt", seen.told, allowed=BY_CHANCE * seen.tasks)
    yield _row("episodes that go on after their end or do not close", seen.loose)
    yield from map(Row, getattr(env, "notes", ()))
    if seen.longest:
        yield Row(seen.sizes())
    if seen.seconds:
        yield Row(f"reference steps: {seen.steps:,} in {seen.seconds:.1f} s, {seen.steps / seen.seconds:,.0f} a second")


def token_counter(source: str) -> Callable[[str], int]:
    """Counts tokens as the model `source` does. Raises UserError if its tokenizer cannot be had."""
    from internalize.inference.loading import load_tokenizer  # noqa: PLC0415 - needs the learning half

    tokenizer = load_tokenizer(source)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _row(what: str, tasks: Sequence[Task], allowed: float = 0.0) -> Row:
    return Row(f"{what}: {len(tasks)}{_first('', tasks)}", len(tasks) if len(tasks) > allowed else 0)


def _marks(task: Task) -> tuple[str, str]:
    """What no two splits may share: the id, and what is asked (however it is spaced) about which state."""
    return task.id, content_hash([" ".join(task.question.split()).casefold(), task.state])


def _repeated(tasks: Sequence[Task]) -> list[Task]:
    counts = Counter(task.id for task in tasks)
    return [task for task in {t.id: t for t in tasks}.values() if counts[task.id] > 1]


def _proof(env: Environment, split: str, tasks: Sequence[Task], guesses: Mapping[str, str], seen: _Seen) -> Row:
    if not tasks:
        return Row(f"{split}: no tasks", 1)
    solutions = [_solved(env, task, seen) for task in tasks]
    failed = [t for t, actions in zip(tasks, solutions, strict=True) if not _proved(env, t, actions, seen)]
    guessed = sum(task.answer is not None and task.answer == guesses.get(task.family) for task in tasks) / len(tasks)
    families = ", ".join(f"{name} {count}" for name, count in sorted(Counter(t.family for t in tasks).items()))
    text = f"{split}: {_referred(solutions, len(failed))}, closed-book guesser {guessed:.1%} ({families})"
    why = seen.broke.get(failed[0].id, "") if failed else ""
    return Row(text + _first("; fails", failed) + (f" ({why})" if why else ""), len(failed))


def _listed(env: Environment, split: str) -> Sequence[Task]:
    try:
        return env.tasks(split)
    except Exception as error:
        raise TaskError(f"{env.name}: the tasks of {split!r} cannot be had ({_words(error)})") from error


def _solved(env: Environment, task: Task, seen: _Seen) -> Sequence[ToolCall]:
    """The reference; empty, and noted as what broke, if it cannot be had."""
    try:
        return env.solve(task)
    except Exception as error:  # noqa: BLE001 - the other tasks are still to be proved
        seen.broke[task.id] = _words(error)
        return ()


def _words(error: Exception) -> str:
    """What broke, in one line. Wrong use, such as a missing key, is raised again: it is not about a task."""
    if isinstance(error, InfrastructureError | TaskError):
        return str(error)
    if isinstance(error, InternalizeError):
        raise error
    first = (str(error).strip().splitlines() or [""])[0]
    return f"raised {type(error).__name__}: {first}".rstrip(": ")


def _referred(solutions: Sequence[Sequence[ToolCall]], failed: int) -> str:
    lengths = [len(actions) for actions in solutions if actions]
    without = len(solutions) - len(lengths)
    parts = []
    if lengths:
        parts.append(f"reference {len(lengths) - failed}/{len(lengths)}, {min(lengths)}-{max(lengths)} steps")
    if without:
        parts.append(f"no reference for {without} tasks")
    return ", ".join(parts)


def _first(what: str, tasks: Sequence[Task]) -> str:
    return f"{what}: {tasks[0].id} {tasks[0].question!r}" if tasks else ""


def _proved(env: Environment, task: Task, actions: Sequence[ToolCall], seen: _Seen) -> bool:
    """Whether the reference, if there is one, scores 1.0; everything else that is seen goes into `seen`."""
    seen.tasks += 1
    try:
        seen.shown.append(Shown(task, _look(env, task, seen), tuple(actions)))
    except Exception as error:  # noqa: BLE001 - an environment of others may raise anything
        seen.broke[task.id] = _words(error)
    if task.id in seen.broke or not actions:
        return task.id not in seen.broke
    started = time.perf_counter()
    score = replay(env, task, actions, seen)
    seen.seconds += time.perf_counter() - started
    seen.steps += len(actions)
    return score == 1.0


def _look(env: Environment, task: Task, seen: _Seen) -> str:
    """What an episode begins with; whether that is won, or tells the answer, goes into `seen`."""
    episode = env.episode(task)
    try:
        prompt = "\n".join(message.text for message in prompt_of(env.name, episode.prompt()))
        if score_of(env.name, episode.score()) == 1.0:
            seen.free.append(task)
    finally:
        _closed(episode)
    seen.text("prompt", prompt)
    if task.answer and len(task.answer) >= _SHORTEST and _stands_in(task.answer, prompt):
        seen.told.append(task)
    return prompt


def _stands_in(answer: str, prompt: str) -> bool:
    """Whether the answer is in the prompt as a word or words."""
    return re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt) is not None


def replay(env: Environment, task: Task, actions: Sequence[ToolCall], seen: _Seen | None = None) -> float | None:
    """The score of a scripted episode; None if it broke or did not end.

    An answer that is left to a judge scores 1.0 if it is the reference itself.
    """
    seen, episode = seen or _Seen(None), None
    try:
        episode = env.episode(task)
        return _played(env.name, episode, task, actions, seen)
    except Exception as error:  # noqa: BLE001 - an environment of others may raise anything
        seen.broke[task.id] = _words(error)
        return None
    finally:
        if episode is not None and not _closed(episode):
            seen.loose.append(task)


def _played(name: str, episode: Episode, task: Task, actions: Sequence[ToolCall], seen: _Seen) -> float | None:
    said = [message.text for message in episode.prompt()]
    for number, action in enumerate(actions):
        observation = observation_of(name, episode.step(action))
        said += [action.argument, observation] if observation else [action.argument]
        seen.text("observation", observation or "")
        if observation is None:
            score = score_of(name, _score(episode))
            seen.text("reference episode", "\n".join(said))
            if not all(_refuses(episode, further) for further in (actions[0], _other(action))):
                seen.loose.append(task)
            return score if number == len(actions) - 1 else None
    return None


def _score(episode: Episode) -> float | None:
    score = episode.score()
    claimed: Callable[[], Claim | None] | None = getattr(episode, "claim", None)
    claim = claimed() if score is None and claimed else None
    return score if claim is None else float(claim.answer.strip() == claim.reference.strip())


def _refuses(episode: Episode, action: ToolCall) -> bool:
    """Whether the end is the end: a further step raises, or changes no score."""
    score = _score(episode)
    try:
        episode.step(action)
    except Exception:  # noqa: BLE001 - refusing is what is asked for, however it is done
        return True
    return _score(episode) == score


def _other(action: ToolCall) -> ToolCall:
    """The same call with other arguments."""
    changed = {n: not value if isinstance(value, bool) else "something else" for n, value in action.values.items()}
    return action.model_copy(update={"arguments": json.dumps(changed)})


def _closed(episode: Episode) -> bool:
    """Close what can be closed, twice, since a run may do so too."""
    close: Callable[[], None] | None = getattr(episode, "close", None)
    try:
        for _ in range(2):
            if close:
                close()
    except Exception:  # noqa: BLE001 - an environment of others may raise anything
        return False
    return True


def _commonest(tasks: Sequence[Task]) -> dict[str, str]:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        answers[task.family][task.answer or ""] += 1
    return {family: counts.most_common(1)[0][0] for family, counts in answers.items()}
