"""Checks an environment without a model: references score 1.0, splits share no task, no task is won without acting.

One row for each split has the scores of its reference solutions, and the score of a guesser that gives a family's most
frequent answer in the first split. Further rows are about all tasks. A failed row has the number of failed tasks and
names the first.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from internalize.environments.agent.env import PlayedByAgent
from internalize.errors import InfrastructureError, InternalizeError, TaskError, first_line
from internalize.interfaces import Environment, Episode
from internalize.records import Claim, Task, ToolCall, content_hash

from .checks import observation_of, prompt_of, score_of
from .leakage import TaskView, find_overlap

BY_CHANCE = 0.05  # share of answers that may be in their prompts: short answers are there by chance
_SHORTEST = 4  # shortest answer that is searched for, in characters


@dataclass(frozen=True)
class Row:
    """One line of the result; `failed` counts tasks."""

    text: str
    failed: int = 0


@dataclass
class _Findings:
    """What the episodes of all splits showed."""

    tasks: int = 0
    steps: int = 0
    seconds: float = 0.0
    won_at_start: list[Task] = field(default_factory=list)
    answer_in_prompt: list[Task] = field(default_factory=list)
    not_ending: list[Task] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)  # by task id
    views: list[TaskView] = field(default_factory=list)
    longest: dict[str, str] = field(default_factory=dict)  # the longest prompt, observation and episode

    def measure(self, kind: str, text: str) -> None:
        """Keep the longest text of each kind."""
        if len(text) > len(self.longest.get(kind, "")):
            self.longest[kind] = text


def validate(env: Environment, splits: Sequence[str], *, tokens: Callable[[str], int] | None = None) -> Iterator[Row]:
    """A row for each split, then rows over all splits. `tokens` counts the tokens of a text.

    Raises TaskError for tasks that cannot be listed, or that cannot be played step by step.
    """
    if isinstance(env, PlayedByAgent):
        raise TaskError(f"{env.name}: an agent plays its tasks; try it with `internalize rollout`")
    split_of: dict[str, str] = {}
    shared: list[Task] = []
    repeated: list[Task] = []
    guesses: dict[str, str] = {}
    findings = _Findings()
    for split in tuple(splits) or tuple(getattr(env, "splits", lambda: ("train", "dev", "test"))()):
        try:
            tasks = env.tasks(split)
        except Exception as error:
            raise TaskError(f"{env.name}: the tasks of {split!r} cannot be had ({_failure(error)})") from error
        guesses = guesses or _most_frequent_answers(tasks)
        shared += [task for task in tasks if {split_of.setdefault(key, split) for key in _keys(task)} != {split}]
        counts = Counter(task.id for task in tasks)
        repeated += [task for task in {t.id: t for t in tasks}.values() if counts[task.id] > 1]
        yield _split_row(env, split, tasks, guesses, findings)
    yield _row("tasks in more than one split", shared)
    overlap = find_overlap(env, findings.views)
    note = f" ({overlap.not_compared} tasks not compared: too many look alike at first)" if overlap.not_compared else ""
    yield _row(f"tasks that show the world of one in another split{note}", overlap.tasks)
    if repeated:
        yield _row("tasks twice in a split", repeated)
    yield _row("tasks won without acting", findings.won_at_start)
    yield _row("answers that stand in the prompt", findings.answer_in_prompt, allowed=BY_CHANCE * findings.tasks)
    yield _row("episodes that go on after their end or do not close", findings.not_ending)
    yield from map(Row, getattr(env, "notes", ()))
    if findings.longest:
        yield Row(f"longest {', '.join(_size(kind, text, tokens) for kind, text in findings.longest.items())}")
    if seconds := findings.seconds:
        steps = findings.steps
        yield Row(f"reference steps: {steps:,} in {seconds:.1f} s, {steps / seconds:,.0f} a second")


def token_counter(source: str) -> Callable[[str], int]:
    """Counts tokens with the tokenizer of the model `source`. Raises UserError if it cannot be loaded."""
    from internalize.inference.loading import load_tokenizer  # noqa: PLC0415 - imports torch

    tokenizer = load_tokenizer(source)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _size(kind: str, text: str, tokens: Callable[[str], int] | None) -> str:
    return f"{kind} {len(text):,} characters" + (f" ({tokens(text):,} tokens)" if tokens else "")


def _row(what: str, tasks: Sequence[Task], allowed: float = 0.0) -> Row:
    first = f": {tasks[0].id} {tasks[0].question!r}" if tasks else ""
    return Row(f"{what}: {len(tasks)}{first}", len(tasks) if len(tasks) > allowed else 0)


def _keys(task: Task) -> tuple[str, str]:
    """The keys that two splits must not share: the id, and the question (without spacing) with the state."""
    return task.id, content_hash([" ".join(task.question.split()).casefold(), task.state])


def _most_frequent_answers(tasks: Sequence[Task]) -> dict[str, str]:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for task in tasks:
        answers[task.family][task.answer or ""] += 1
    return {family: counts.most_common(1)[0][0] for family, counts in answers.items()}


def _split_row(
    env: Environment, split: str, tasks: Sequence[Task], guesses: Mapping[str, str], findings: _Findings
) -> Row:
    if not tasks:
        return Row(f"{split}: no tasks", 1)
    solutions: list[Sequence[ToolCall]] = []
    for task in tasks:
        try:
            solutions.append(env.solve(task))
        except Exception as error:  # noqa: BLE001 - the other tasks are still to be checked
            findings.failures[task.id] = _failure(error)
            solutions.append(())
    failed = [t for t, calls in zip(tasks, solutions, strict=True) if not _solved(env, t, calls, findings)]
    lengths = [len(calls) for calls in solutions if calls]
    parts = []
    if lengths:
        parts.append(f"reference {len(lengths) - len(failed)}/{len(lengths)}, {min(lengths)}-{max(lengths)} steps")
    if without := len(solutions) - len(lengths):
        parts.append(f"no reference for {without} tasks")
    guessed = sum(task.answer is not None and task.answer == guesses.get(task.family) for task in tasks) / len(tasks)
    families = ", ".join(f"{name} {count}" for name, count in sorted(Counter(t.family for t in tasks).items()))
    text = f"{split}: {', '.join(parts)}, closed-book guesser {guessed:.1%} ({families})"
    if failed:
        text += f"; fails: {failed[0].id} {failed[0].question!r}"
        if reason := findings.failures.get(failed[0].id):
            text += f" ({reason})"
    return Row(text, len(failed))


def _failure(error: Exception) -> str:
    """The error in one line. Wrong use, such as a missing key, is raised again, because it is not about one task."""
    if isinstance(error, InfrastructureError | TaskError):
        return str(error)
    if isinstance(error, InternalizeError):
        raise error
    return f"raised {type(error).__name__}" + (f": {first_line(error)}" if str(error).strip() else "")


def _solved(env: Environment, task: Task, calls: Sequence[ToolCall], findings: _Findings) -> bool:
    """Whether nothing failed and the reference, if there is one, scores 1.0."""
    findings.tasks += 1
    try:
        findings.views.append(TaskView(task, _inspect_start(env, task, findings), tuple(calls)))
    except Exception as error:  # noqa: BLE001 - an environment of another package may raise anything
        findings.failures[task.id] = _failure(error)
    if task.id in findings.failures or not calls:
        return task.id not in findings.failures
    started = time.perf_counter()
    score = replay(env, task, calls, findings)
    findings.seconds += time.perf_counter() - started
    findings.steps += len(calls)
    return score == 1.0


def _inspect_start(env: Environment, task: Task, findings: _Findings) -> str:
    """The prompt; records whether the episode is won at its start and whether the prompt has the answer."""
    episode = env.episode(task)
    try:
        prompt = "\n".join(message.text for message in prompt_of(env.name, episode.prompt()))
        if score_of(env.name, episode.score()) == 1.0:
            findings.won_at_start.append(task)
    finally:
        _closes(episode)
    findings.measure("prompt", prompt)
    answer = task.answer or ""
    if len(answer) >= _SHORTEST and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", prompt):
        findings.answer_in_prompt.append(task)
    return prompt


def replay(env: Environment, task: Task, calls: Sequence[ToolCall], findings: _Findings | None = None) -> float | None:
    """The score of a scripted episode; None if it failed or did not end with the last call.

    An answer that is left to a judge scores 1.0 if it equals the reference.
    """
    findings, episode = findings or _Findings(), None
    try:
        episode = env.episode(task)
        return _play(env.name, episode, task, calls, findings)
    except Exception as error:  # noqa: BLE001 - an environment of another package may raise anything
        findings.failures[task.id] = _failure(error)
        return None
    finally:
        if episode is not None and not _closes(episode):
            findings.not_ending.append(task)


def _play(name: str, episode: Episode, task: Task, calls: Sequence[ToolCall], findings: _Findings) -> float | None:
    texts = [message.text for message in episode.prompt()]
    for number, call in enumerate(calls):
        observation = observation_of(name, episode.step(call))
        texts += [call.argument, observation] if observation else [call.argument]
        findings.measure("observation", observation or "")
        if observation is None:
            score = score_of(name, _score(episode))
            findings.measure("reference episode", "\n".join(texts))
            if not all(_keeps_score(episode, further) for further in (calls[0], _with_other_arguments(call))):
                findings.not_ending.append(task)
            return score if number == len(calls) - 1 else None
    return None


def _score(episode: Episode) -> float | None:
    score = episode.score()
    claim_method: Callable[[], Claim | None] | None = getattr(episode, "claim", None)
    claim = claim_method() if score is None and claim_method else None
    return score if claim is None else float(claim.answer.strip() == claim.reference.strip())


def _keeps_score(episode: Episode, call: ToolCall) -> bool:
    """Whether a step after the end raises or leaves the score as it is."""
    score = _score(episode)
    try:
        episode.step(call)
    except Exception:  # noqa: BLE001 - a refusal is right, whatever it raises
        return True
    return _score(episode) == score


def _with_other_arguments(call: ToolCall) -> ToolCall:
    changed = {n: not value if isinstance(value, bool) else "something else" for n, value in call.values.items()}
    return call.model_copy(update={"arguments": json.dumps(changed)})


def _closes(episode: Episode) -> bool:
    """Whether the episode can be closed twice, as a run may do."""
    close: Callable[[], None] = getattr(episode, "close", lambda: None)
    try:
        close()
        close()
    except Exception:  # noqa: BLE001 - an environment of another package may raise anything
        return False
    return True
