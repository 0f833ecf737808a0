"""Environment `mcp`: your tasks with the tools of any Model Context Protocol server. Needs the extra `mcp`.

Tasks come from a file (question, answer, optional split, family and `solve`, a list of {"tool", "arguments"}). Every
episode has its own session, started with its first call: a command is started again, an HTTP server sees a new session.
With `stateless` all episodes of a process share one session. Answers are graded by text, as mathematics, by a model, or
by a function of yours. A server that hangs or dies leaves its episode unscored. State that a server keeps from one
session to the next is not reset.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from contextlib import closing
from typing import Any

from pydantic import Field, JsonValue

from internalize.environments.base import UNKNOWN, AnswerEpisode, SplitTasks, graded, read_options
from internalize.environments.callables import load_function
from internalize.environments.loop_thread import LoopThread
from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, Columns, Row, tasks_of
from internalize.errors import DataError, InfrastructureError, TaskError, UserError
from internalize.experience.extract.injection_filter import addresses_model
from internalize.inference import tool_schema
from internalize.judge.match import same
from internalize.judge.maths import MathJudge
from internalize.records import Task, ToolCall, ToolSpec

from .session import Server, Session, Sessions

Steps = tuple[tuple[ToolCall, str], ...]  # the calls of an episode and their results
Verifier = Callable[[Task, str, Steps], float | None]
_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[\w./:-]{1,128}")
_LONGEST = 20_000  # characters of a tool's description and schema
_NOTES = frozenset({"description", "title", "$comment"})  # schema keys with text for people
_WITHHELD = "(no description)"  # replaces a description that addresses the model
_ANSWER = ToolSpec(name="answer", argument="answer", description="Give the answer; ends the episode.")


class McpOptions(Server):
    """Options of the environment, as `env.options` of a recipe."""

    tasks: str | dict[str, str] = Field(description="A file of tasks, or a file for each split.")
    question: str = Field("", description="Field of the file that holds the question; '' = a common name.")
    answer: str = Field("", description="Field of the file that holds the answer; '' = a common name.")
    tools: tuple[str, ...] = Field((), description="Tools that are offered; () = all of the server's.")
    evidence: tuple[str, ...] = Field((), description="Tools that gather evidence; () = all.")
    verify: str = Field(
        "exact",
        description="'exact', 'maths', 'model' (the judge of the recipe), 'module:function' or 'file.py:function'.",
    )
    system: str = Field("You solve tasks with tools.", description="The system message, before the tools.")
    stateless: bool = Field(
        default=False,
        description="Whether the server keeps nothing from one call to the next: one session for all episodes of a "
        "worker then, in place of one an episode.",
    )
    characters: int = Field(4000, ge=10, le=1_000_000, description="Characters shown of a result.")


class McpEpisode(AnswerEpisode):
    """One task. Ends with `answer`; it must be closed, because it may have a server."""

    def __init__(self, task: Task, env: Mcp) -> None:
        super().__init__("mcp", env.options.system, task)
        self._environment = env
        self._session: Session | None = None
        self._steps: list[tuple[ToolCall, str]] = []

    def observe(self, call: ToolCall | None) -> str:
        """The result of the tool."""
        if call is None:
            return UNKNOWN
        sessions = self._environment.sessions
        self._session = self._session or sessions.take()
        try:
            result = self._session.call(call.name, call.values) or "(nothing)"
        except InfrastructureError:
            sessions.lose(self._session)
            raise
        if len(result) > (longest := self._environment.options.characters):
            result = f"{result[:longest]}\n(cut: {len(result)} characters)"
        self._steps.append((call, result))
        return result

    def score(self) -> float | None:
        """0.0 without an answer, else the verifier's score; None if a judge is to decide."""
        if self._answer is None:
            return 0.0
        return self._environment.verifier(self._task, self._answer, tuple(self._steps))

    def close(self) -> None:
        """End the session."""
        session, self._session = self._session, None
        if session:
            self._environment.sessions.give(session)


class Mcp(SplitTasks):
    """The environment. Its constructor asks the server for its tools, once.

    Raises TaskError for invalid options, UserError for a verifier or key that does not exist, InfrastructureError for a
    server that does not start.
    """

    name = "mcp"
    final_actions = frozenset({_ANSWER.name})
    waits = True

    def __init__(self, **options: Any) -> None:
        self.options = read_options("mcp", McpOptions, options)
        if bool(self.options.command) == bool(self.options.url):
            raise TaskError("env.options of mcp: give command or url")
        if self.options.key_env and not os.environ.get(self.options.key_env):
            raise UserError(f"mcp: the environment variable {self.options.key_env} is not set; it holds the token")
        self.verifier = _verifier(self.options.verify)
        self._tasks = tasks_of(self.options.tasks, _row_task, Columns(self.options.question, self.options.answer))
        self._loop = LoopThread()
        self.sessions = Sessions(lambda: Session(self.options, self._loop), shared=self.options.stateless)
        try:
            offered = self._offered()
        except BaseException:  # else the thread would outlive the failed constructor
            self.close()
            raise
        self.tools: tuple[ToolSpec, ...] = (*offered, _ANSWER)
        self.evidence_actions = frozenset(self.options.evidence or (tool.name for tool in offered))

    def _offered(self) -> tuple[ToolSpec, ...]:
        with closing(Session(self.options, self._loop)) as session:
            found = {tool.name: tool for tool in session.tools()}
        wanted = self.options.tools or tuple(found)
        if unknown := [name for name in (*wanted, *self.options.evidence) if name not in found]:
            raise TaskError(f"mcp: the server has no tool {unknown[0]!r} (it has {', '.join(found) or 'none'})")
        if _ANSWER.name in wanted:
            raise TaskError("mcp: the server's tool 'answer' would hide ours; leave it out of env.options.tools")
        for name in wanted:
            if not _NAME.fullmatch(name):  # the system message quotes it as the server wrote it
                raise TaskError(f"mcp: the server calls a tool {name[:80]!r}, which is no name")
            if reason := tool_schema.defect(found[name].parameters or {}):
                _LOG.warning(
                    "mcp: the schema of the tool %r is invalid (%s); only the server checks its calls", name, reason
                )
        return tuple(_screened(found[name]) for name in wanted)

    def episode(self, task: Task) -> McpEpisode:
        """A fresh episode."""
        return McpEpisode(task, self)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The calls in the task's row, and its answer; empty if the row lists none."""
        if not isinstance(listed := task.state.get("solve"), list):
            return ()
        rows = [row for row in listed if isinstance(row, dict)]
        calls = [ToolCall(name=str(row["tool"]), arguments=json.dumps(row.get("arguments", {}))) for row in rows]
        return (*calls, ToolCall.of(_ANSWER.name, answer=task.answer or ""))

    def close(self) -> None:
        """End every session."""
        self._loop.close()


def _screened(tool: ToolSpec) -> ToolSpec:
    """The tool without texts that address a model. Raises TaskError for one that cannot be shown."""
    said = len(tool.description) + len(json.dumps(tool.parameters or {}))
    if said > _LONGEST:
        raise TaskError(
            f"mcp: the server describes the tool {tool.name!r} in {said:,} characters, of which {_LONGEST:,} may be "
            "shown; leave it out of env.options.tools"
        )
    update: dict[str, Any] = {"parameters": _without_speech(tool.name, tool.parameters)}
    if reason := addresses_model(tool.description):
        _LOG.warning("mcp: the description of the tool %r %s; the policy does not see it", tool.name, reason)
        update["description"] = _WITHHELD
    return tool.model_copy(update=update)


def _without_speech(tool: str, schema: Any) -> Any:
    """A schema without notes that address a model. Raises TaskError if a required part addresses one."""
    if isinstance(schema, dict):
        kept = {}
        for inner, value in schema.items():
            _without_speech(tool, inner)
            if inner in _NOTES and isinstance(value, str) and (reason := addresses_model(value)):
                _LOG.warning("mcp: a note in the schema of the tool %r %s; the policy does not see it", tool, reason)
            else:
                kept[inner] = _without_speech(tool, value)
        return kept
    if isinstance(schema, list):
        return [_without_speech(tool, value) for value in schema]
    if isinstance(schema, str) and (reason := addresses_model(schema)):
        raise TaskError(f"mcp: the schema of the tool {tool!r} {reason}; leave it out of env.options.tools")
    return schema


def _row_task(row: Row, split: str) -> Task:
    calls = row.cells.get("solve")
    state: dict[str, JsonValue] = {} if calls is None else {"solve": calls}
    if calls is not None and not (isinstance(calls, list) and all(isinstance(c, dict) and "tool" in c for c in calls)):
        raise DataError(f'{row.where}: solve is a list of {{"tool": ..., "arguments": ...}}')
    return Task.new("mcp", split, row.need(QUESTION), row.get(ANSWER) or None, row.get(FAMILY), **state)


def _verifier(name: str) -> Verifier:
    """The built-in function of this name, or the user's own. Raises UserError if it cannot be loaded."""
    if name == "maths":
        judge = MathJudge()
        return lambda task, answer, _: None if task.answer is None else graded("mcp", judge, task, answer)
    if name == "exact":
        return lambda task, answer, _: None if task.answer is None else float(same(task.answer, answer))
    if name == "model":  # only the exact words of the reference need no judge
        return lambda task, answer, _: 1.0 if task.answer is not None and same(task.answer, answer) else None
    if ":" not in name:
        raise UserError(f"mcp: verify = {name!r} is no 'exact', 'maths', 'model' or 'module:function'")
    return load_function(name, "mcp: verify")
