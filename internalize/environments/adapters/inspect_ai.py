"""Tasks of inspect_ai by name, `env.name = "inspect:inspect_evals/NAME"`, or of a file: `"inspect:FILE.py@NAME"`.

The task's own solver runs, with its tools, limits of messages and time, and scorer; the policy takes the place of its
model. The tool `reply` is an assistant message without a call. A solver may call the policy only on one growing
conversation, always with the same tools. Simulated users, graders, several agents and compaction are refused when they
occur, because the policy would have to play another role; sandboxes and token limits are refused at once.
"""

from __future__ import annotations

from typing import Any

from inspect_ai._eval.loader import load_tasks
from pydantic import Field

from internalize.config.regime import Section
from internalize.environments.base import UNKNOWN, SingleUseEpisode, SplitTasks, read_options
from internalize.environments.loop_thread import LoopThread
from internalize.environments.question_files import SPLITS, split_of
from internalize.errors import InfrastructureError, TaskError, first_line
from internalize.records import Message, Task, ToolCall, ToolSpec

from .inspect_play import REPLY, Play, text_of

_REFUSED = ("sandbox", "approval", "model", "model_roles", "token_limit", "cost_limit", "working_limit", "turn_limit")


class InspectOptions(Section):
    """Options of the environment, as `env.options` of a recipe."""

    value: str = Field("", description="The entry that is the score, where the scorer gives several.")
    seconds: float = Field(300.0, gt=0, description="Seconds that the tools of one step, or the scorer, may take.")
    task: dict[str, Any] = Field({}, description="Arguments of the task itself.")


class InspectTask(SplitTasks):
    """The environment. Raises TaskError for a task that does not exist, fails to load or is not supported."""

    waits = True

    def __init__(self, task: str, /, **options: Any) -> None:
        self.name = f"inspect:{task}"
        self.options = read_options(self.name, InspectOptions, options)
        self.loop = LoopThread()
        self.task = _loaded(self.name, task, self.options.task)
        self._samples = {
            str(n if sample.id is None else sample.id): sample for n, sample in enumerate(self.task.dataset)
        }
        if len(self._samples) < len(self.task.dataset):
            raise TaskError(f"{self.name}: two samples have the same id")
        self.tools: tuple[ToolSpec, ...] = ()
        self.tools = self._started(next(iter(self._samples))).tools
        own = {tool.name for tool in self.tools}
        self.final_actions = frozenset({REPLY.name} | ({"submit"} & own))  # submit: the last call of its agents
        self.evidence_actions = frozenset(own - self.final_actions)
        tasks: dict[str, list[Task]] = {split: [] for split in SPLITS}
        for key, sample in self._samples.items():
            question = sample.input if isinstance(sample.input, str) else "\n".join(map(text_of, sample.input))
            answer = sample.target if isinstance(sample.target, str) and sample.target else None
            split = split_of(question)
            tasks[split].append(Task.new(self.name, split, question, answer=answer, sample=key))
        self._tasks = {split: tuple(found) for split, found in tasks.items() if found}

    def episode(self, task: Task) -> InspectEpisode:
        """The task's sample, from its start. Raises InfrastructureError if its tools differ from the first sample's."""
        episode = self._started(str(task.state["sample"]))
        if episode.tools != self.tools:
            raise InfrastructureError(f"{self.name}: sample {task.state['sample']} has other tools than the first")
        return episode

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The target as a reply, if the task has no tools and its scorer accepts the target; else no reference."""
        for text in (task.answer, f"ANSWER: {task.answer}") if task.answer and not self.evidence_actions else ():
            episode, call = self.episode(task), ToolCall.of(REPLY.name, text=text)
            if episode.step(call) is None and episode.score() == 1.0:
                return (call,)
        return ()

    def close(self) -> None:
        """End unfinished samples."""
        self.loop.close()

    def _started(self, key: str) -> InspectEpisode:
        return InspectEpisode(self.name, Play(self.task, self._samples[key], key), self.loop, self.options)


def _loaded(name: str, task: str, arguments: dict[str, Any]) -> Any:
    try:
        found = load_tasks([task], arguments)
    except Exception as error:  # a task is a program of others
        raise TaskError(f"{name}: cannot be loaded ({type(error).__name__}: {first_line(error)})") from error
    if len(found) != 1 or not len(found[0].dataset):
        raise TaskError(f"{name}: one task with samples is needed, and {len(found)} have this name")
    if refused := [field for field in _REFUSED if getattr(found[0], field, None)]:
        raise TaskError(f"{name}: the task has a {refused[0]} of its own, which cannot be carried over")
    if (scorers := len(found[0].scorer or ())) != 1:
        raise TaskError(f"{name}: one scorer is needed, and the task has {scorers}")
    if needing := [sample.id for sample in found[0].dataset if sample.sandbox or sample.files or sample.setup]:
        raise TaskError(f"{name}: sample {needing[0]} needs a sandbox, which cannot be carried over")
    return found[0]


class InspectEpisode(SingleUseEpisode):
    """One sample. Ends with the solver or at a limit; inspect_ai's scorer then scores the state."""

    def __init__(self, env: str, play: Play, loop: LoopThread, options: InspectOptions) -> None:
        super().__init__(env, "", "")
        self._play, self._loop, self._options = play, loop, options
        self._score: float | None = None
        loop.call(play.start(), options.seconds)
        self._refuse()
        if play.ended:
            raise TaskError(f"{env}: its solver asks no model")
        self.tools = play.tools
        self._start = tuple(Message(role=message.role, content=text_of(message)) for message in play.news)

    def prompt(self) -> tuple[Message, ...]:
        """The solver's first request to its model."""
        return self._start

    def observe(self, call: ToolCall | None) -> str | None:
        """The messages after the call; None at the end."""
        if call is None:
            return UNKNOWN
        self._loop.call(self._play.send(call), self._options.seconds)
        self._refuse()
        return None if self._play.ended else "\n".join(filter(None, map(text_of, self._play.news))) or "Done."

    def score(self) -> float:
        """The scorer's result, which ends the conversation. Raises InfrastructureError if it is no number."""
        if self._score is None:
            self._over = True
            value = self._loop.call(self._play.score(self._options.value), self._options.seconds)
            self._refuse()
            if value is None:
                raise InfrastructureError(f"{self._env}: the scorer gave no number from 0 to 1")
            self._score = value
        return self._score

    def close(self) -> None:
        """End the solver."""
        self._loop.call(self._play.end(), self._options.seconds)

    def _refuse(self) -> None:
        if self._play.problem:
            raise InfrastructureError(f"{self._env}: {self._play.problem}")
