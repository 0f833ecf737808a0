"""Environment `agent`: your tasks, played by your own agent, whose model calls go to the policy through the endpoint.

The agent is a command, or a function in a module or a file. It has its own tools; its use of them is read from its
calls of the model. The score is what the agent returns or posts, else the verifier's, else the judge's, who compares
with the task's reference answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from internalize.environments.base import SplitTasks, read_options
from internalize.environments.callables import load_function
from internalize.environments.question_files import ANSWER, FAMILY, QUESTION, Columns, Row, tasks_of
from internalize.errors import TaskError
from internalize.interfaces import Episode
from internalize.records import Task, ToolCall, ToolSpec


class AgentLimits(BaseModel):
    """Options of every environment whose tasks a program plays through the endpoint."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(600.0, gt=0, le=86_400, description="Time limit of one episode.")
    at_once: int = Field(8, ge=1, le=1024, description="Agents that work at the same time.")
    on_error: Literal["unscored", "wrong"] = Field(
        "unscored", description="What an agent that ends with an error of its own is: unscored and tried again, or 0."
    )


class AgentOptions(AgentLimits):
    """Options of the environment, as `env.options` of a recipe."""

    tasks: str | dict[str, str] = Field(description="A file of questions, or a file for each split.")
    question: str = Field("", description="Field of the file that holds the question; '' = a common name.")
    answer: str = Field("", description="Field of the file that holds the answer; '' = a common name.")
    command: tuple[str, ...] = Field((), description="The agent as a command; its task is JSON on standard input.")
    call: str = Field("", description="The agent as 'module:function' or 'file.py:function' (task, base_url, api_key).")
    verifier: str = Field("", description="'module:function' or 'file.py:function' (task, trajectory) -> score.")
    evidence: tuple[str, ...] = Field((), description="Tools of the agent that gather evidence.")
    final: tuple[str, ...] = Field((), description="Tools of the agent that end an episode.")

    @model_validator(mode="after")
    def _one_agent(self) -> AgentOptions:
        if bool(self.command) == bool(self.call):
            raise ValueError("the agent is either a command or a call")
        return self


class PlayedByAgent(SplitTasks):
    """Tasks that a program plays against the endpoint, a `command` or else a `function`; see `rollout.external`."""

    tools: tuple[ToolSpec, ...] = ()  # the program has its own tools
    options: AgentLimits
    command: tuple[str, ...] = ()
    function: Callable[..., Any] | None = None
    verifier: Callable[..., Any] | None = None
    evidence_actions: frozenset[str] = frozenset()
    final_actions: frozenset[str] = frozenset()

    def episode(self, task: Task) -> Episode:
        """Raises TaskError: the agent plays the task itself, so there are no single steps."""
        raise TaskError(f"{self.name}: task {task.id} is played by the agent itself")

    def solve(self, task: Task) -> tuple[ToolCall, ...]:  # noqa: ARG002 - there is none
        """No reference solution."""
        return ()


class AgentTasks(PlayedByAgent):
    """The environment."""

    name = "agent"

    def __init__(self, **options: Any) -> None:
        self.options = own = read_options("agent", AgentOptions, options)
        self._tasks = tasks_of(own.tasks, _row_task, Columns(own.question, own.answer))
        self.command = own.command
        self.function = load_function(own.call, "env.options.call") if own.call else None
        self.verifier = load_function(own.verifier, "env.options.verifier") if own.verifier else None
        self.evidence_actions = frozenset(own.evidence)
        self.final_actions = frozenset(own.final)


def _row_task(row: Row, split: str) -> Task:
    return Task.new("agent", split, row.need(QUESTION), row.get(ANSWER) or None, row.get(FAMILY))
