"""The schema of log lines written by other programs, and the reader that turns a file of them into trajectories.

Unknown fields are ignored. The fields that are read are validated, and an error names file, line and field.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
)

from internalize.errors import DataError
from internalize.records import Termination, Trajectory
from internalize.runs.files import read_numbered

Score = Annotated[
    float,
    BeforeValidator(lambda value: float(value) if isinstance(value, bool) else value),
    Field(strict=True, ge=0, le=1, allow_inf_nan=False),
]
Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) else value)]


class Wire(BaseModel):
    """Base of the log records: unknown fields are ignored, and empty ones are not written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value for key, value in write(self).items() if value is not None and (value != [] or key == "messages")
        }


class ChatFunction(Wire):
    """Name and arguments of a call; an object of arguments becomes JSON text."""

    name: str
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, value: object) -> object:
        return "{}" if value is None else json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class ChatCall(Wire):
    """One entry of `tool_calls`."""

    id: str | None = None
    type: str = "function"
    function: ChatFunction


class ChatMessage(Wire):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ChatCall, ...] = ()
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        if isinstance(value, list):
            return "".join(_text_part(number, part) for number, part in enumerate(value))
        return "" if value is None else value

    @field_validator("tool_calls", mode="before")
    @classmethod
    def _calls(cls, value: object) -> object:
        return () if value is None else value


class ChatTool(Wire):
    """One entry of `tools`, with the fields inside `function` or at the top level."""

    function: dict[str, JsonValue] | None = None
    name: str | None = None
    description: str = ""
    parameters: dict[str, JsonValue] | None = None


class ChatLine(Wire):
    """One line: the messages and metadata of one episode. `task` identifies the task, `id` the episode."""

    id: Name | None = None
    task: Name | None = None
    env: str | None = None
    split: str | None = None
    iteration: int = 0
    model: str | None = None
    score: Score | None = None
    reward: Score | None = None
    error: JsonValue = None
    termination: Termination | None = None
    tools: tuple[ChatTool, ...] | None = None
    messages: tuple[ChatMessage, ...]


LineT = TypeVar("LineT", bound=BaseModel)


def read_lines(path: Path, model: type[LineT], read: Callable[[LineT, Counter[str]], Trajectory]) -> list[Trajectory]:
    """The trajectories that `read` makes of the lines; it also gets the count of earlier episodes for each task.

    Raises DataError naming file, line and field, also for an episode id that occurs twice.
    """
    attempts: Counter[str] = Counter()
    line_of: dict[str, int] = {}  # by episode id
    trajectories = []
    for number, line in read_numbered(path, model):
        try:
            trajectory = read(line, attempts)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if trajectory.id in line_of:
            first = line_of[trajectory.id]
            raise DataError(f"{path}, line {number}: id: {trajectory.id!r} is also the id in line {first}")
        line_of[trajectory.id] = number
        attempts[trajectory.task_id] += 1
        trajectories.append(trajectory)
    return trajectories


def _text_part(number: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) else part
    if kind not in {"text", "input_text", "output_text", "str"} or not isinstance(text, str):
        raise ValueError(f"part {number} has type {kind}; only text is supported")
    return text
