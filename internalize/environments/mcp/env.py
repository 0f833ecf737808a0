"""Environment `mcp`: your tasks with the tools of any Model Context Protocol server. Needs the extra `mcp`.

Tasks come from a file (question, answer, optional split, family and `solve`, a list of {"tool", "arguments"}). Every
episode has a session of its own, started with its first call: a command is run anew, an HTTP server sees a new session.
Answers are graded by text, as mathematics, by a model, or by a function of yours. A server that hangs or dies leaves
its episode unscored. State that a server keeps from one session to the next is not reset.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import Field, JsonValue, ValidationError

from internalize.config.regime import Section
from internalize.environments.loop_thread import Background
from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, Row, of_split, tasks_of
from internalize.errors import DataError, InfrastructureError, TaskError, UserError, first_line
from internalize.inference import tool_schema
from internalize.judge.match import same
from internalize.judge.maths import MathJudge
from internalize.records import Claim, Message, Task, ToolCall, ToolSpec
from internalize.runs.store import first_problem

from .session import Server, Session

Steps = tuple[tuple[ToolCall, str], ...]  # the calls of an episode and what came back
Verifier = Callable[[Task, str, Steps], float | None]
_LOG = logging.getLogger(__name__)
_ANSWER = ToolSpec(name="answer", argument="answer", description="Give the answer; ends the episode.")


class McpOptions(Section):
    """Options of the environment, as `env.options` of a recipe."""

    tasks: str | dict[str, str] = Field(description="A file of tasks, or a file for each split.")
    command: tuple[str, ...] = Field((), description="Program and arguments of a server over stdio.")
    url: str = Field("", description="Address of a server over streamable HTTP.")
    key_env: str = Field("", description="Environment variable with the bearer token for `url`; '' = none.")
    pass_env: tuple[str, ...] = Field(
        (),
        description="Environment variables that `command` may see besides PATH, HOME, SHELL, TERM, LOGNAME and USER.",
    )
    tools: tuple[str, ...] = Field((), description="Tools that are offered; () = all of the server's.")
    evidence: tuple[str, ...] = Field((), description="Tools that gather evidence; () = all.")
    verify: str = Field(
        "exact",
        description="'exact', 'maths', 'model' (the judge of the recipe), 'module:function' or 'file.py:function'.",
    )
    system: str = Field("You solve tasks with tools.", description="The system message, before the tools.")
    starting: float = Field(60.0, gt=0, le=3600, description="Seconds a server may take to start.")
    seconds: float = Field(30.0, gt=0, le=3600, description="Seconds a call may take.")
    characters: int = Field(4000, ge=10, le=1_000_000, description="Characters shown of a result.")


class McpEpisode:
    """One task. Ends with `answer`; to be closed, since it may hold a server."""

    def __init__(self, task: Task, env: Mcp) -> None:
        self._task, self._env = task, env
        self._session: Session | None = None
        self._answer: str | None = None
        self._steps: list[tuple[ToolCall, str]] = []

    def prompt(self) -> tuple[Message, ...]:
        """The system message and the question."""
        system = Message(role="system", content=self._env.options.system)
        return (system, Message(role="user", content=self._task.question))

    def step(self, action: ToolCall | None) -> str | None:
        """What the tool answers, or None after `answer`."""
        if self._answer is not None:
            raise InfrastructureError("mcp: the episode is over; episodes are single-use")
        if action is None:
            return "Unknown action."
        if action.name == _ANSWER.name:
            self._answer = action.argument
            return None
        self._session = self._session or self._env.session()
        said = self._session.call(action.name, action.values) or "(nothing)"
        if len(said) > (most := self._env.options.characters):
            said = f"{said[:most]}\n(cut: {len(said)} characters)"
        self._steps.append((action, said))
        return said

    def score(self) -> float | None:
        """0.0 without an answer, else what the verifier says; None if a judge is to decide."""
        if self._answer is None:
            return 0.0
        return self._env.verifier(self._task, self._answer, tuple(self._steps))

    def claim(self) -> Claim | None:
        """What a judge is asked."""
        if not self._answer or not self._task.answer:
            return None
        return Claim(question=self._task.question, reference=self._task.answer, answer=self._answer)

    def close(self) -> None:
        """End the session."""
        session, self._session = self._session, None
        if session:
            session.close()


class Mcp:
    """The environment. The server is asked for its tools once, when it is built.

    Raises TaskError for options that make no sense, UserError for a verifier or key that is not there,
    InfrastructureError for a server that does not start.
    """

    name = "mcp"
    final_actions = frozenset({_ANSWER.name})
    waits = True

    def __init__(self, **options: Any) -> None:
        try:
            self.options = McpOptions(**options)
        except ValidationError as error:
            raise TaskError(f"env.options of mcp: {first_problem(error)}") from error
        if bool(self.options.command) == bool(self.options.url):
            raise TaskError("env.options of mcp: give command or url")
        if self.options.key_env and not os.environ.get(self.options.key_env):
            raise UserError(f"mcp: the environment variable {self.options.key_env} is not set; it holds the token")
        self.verifier = _verifier(self.options.verify)
        self._tasks = tasks_of(self.options.tasks, _row_task)
        self._server = Server(
            self.options.command,
            self.options.url,
            self.options.key_env,
            self.options.pass_env,
            self.options.starting,
            self.options.seconds,
        )
        self._background = Background()
        try:
            offered = self._offered()
        except BaseException:
            self.close()
            raise
        self.tools: tuple[ToolSpec, ...] = (*offered, _ANSWER)
        self.evidence_actions = frozenset(self.options.evidence or (tool.name for tool in offered))

    def _offered(self) -> tuple[ToolSpec, ...]:
        session = self.session()
        try:
            found = {tool.name: tool for tool in session.tools()}
        finally:
            session.close()
        wanted = self.options.tools or tuple(found)
        if unknown := [name for name in (*wanted, *self.options.evidence) if name not in found]:
            raise TaskError(f"mcp: the server has no tool {unknown[0]!r} (it has {', '.join(found) or 'none'})")
        if _ANSWER.name in wanted:
            raise TaskError("mcp: the server's tool 'answer' would hide ours; leave it out of env.options.tools")
        for name in wanted:
            if reason := tool_schema.defect(found[name].parameters or {}):
                _LOG.warning(
                    "mcp: the schema of the tool %r is faulty (%s); the server alone judges its calls", name, reason
                )
        return tuple(found[name] for name in wanted)

    def session(self) -> Session:
        """A new session."""
        return Session(self._server, self._background)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._tasks)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Tasks of `split` in a fixed order. Raises TaskError for an unknown split."""
        return of_split(self.name, self._tasks, split)

    def episode(self, task: Task) -> McpEpisode:
        """A fresh episode."""
        return McpEpisode(task, self)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The calls that the row of the task lists, and its answer; empty if it lists none."""
        calls = task.state.get("solve")
        if not isinstance(calls, list):
            return ()
        made = [call for call in calls if isinstance(call, dict)]
        actions = [ToolCall(name=str(c["tool"]), arguments=json.dumps(c.get("arguments", {}))) for c in made]
        return (*actions, ToolCall.of(_ANSWER.name, answer=task.answer or ""))

    def close(self) -> None:
        """End every session."""
        self._background.close()


def _row_task(row: Row, split: str) -> Task:
    calls = row.cells.get("solve")
    state: dict[str, JsonValue] = {} if calls is None else {"solve": calls}
    if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) and "tool" in c for c in calls)):
        raise DataError(f'{row.where}: solve is a list of {{"tool": ..., "arguments": ...}}')
    return Task.new("mcp", split, row.need(QUESTION), row.get(ANSWER) or None, row.get(FAMILY), **state)


def _verifier(named: str) -> Verifier:
    """The built-in or own function. Raises UserError for one that cannot be had."""
    if named == "maths":
        return _Mathematical()
    if named in {"exact", "model"}:
        return _exact if named == "exact" else _left_to_a_judge
    place, colon, name = named.partition(":")
    try:
        found: Verifier | None = getattr(_module(place), name, None) if colon else None
    except Exception as error:  # the file is run, and may raise anything
        said = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"mcp: verify = {named!r} cannot be loaded ({said})") from error
    if not callable(found):
        raise UserError(f"mcp: verify = {named!r} is no 'exact', 'maths', 'model' or 'module:function'")
    return found


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    spec = importlib.util.spec_from_file_location(Path(place).stem, Path(place).expanduser())
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _exact(task: Task, answer: str, _steps: Steps) -> float | None:
    return None if task.answer is None else float(same(task.answer, answer))


def _left_to_a_judge(task: Task, answer: str, _steps: Steps) -> float | None:
    return 1.0 if task.answer is not None and same(task.answer, answer) else None


class _Mathematical:
    """As the judge `maths`."""

    def __init__(self) -> None:
        self._judge = MathJudge()

    def __call__(self, task: Task, answer: str, _steps: Steps) -> float | None:
        if task.answer is None:
            return None
        found = asyncio.run(self._judge.judge(Claim(question=task.question, reference=task.answer, answer=answer)))
        if found.score is None:
            raise InfrastructureError(f"mcp: {found.reason}")
        return found.score
