"""Lines of other programs' logs as checked records, and the way from such a file to trajectories.

Left out: what a line means (chat.py, official.py). What must not change: fields we do not know are ignored, since
logs are full of them; those we read are checked, and an error names file, line and field.
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
    """What others write: fields we do not know are theirs; ours are left out where they hold nothing."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_serializer(mode="wrap")
    def _without_nothing(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value for key, value in write(self).items() if value is not None and (value != [] or key == "messages")
        }


class ChatFunction(Wire):
    """Name and arguments of a call; arguments given as an object become JSON text."""

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
    """One message."""

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
    """One entry of `tools`, in its `function` or bare."""

    function: dict[str, JsonValue] | None = None
    name: str | None = None
    description: str = ""
    parameters: dict[str, JsonValue] | None = None


class ChatLine(Wire):
    """One line: the messages of one episode and what is known of it. `task` names it, `id` this episode."""

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
    """Every line of a file through `read`, which is given how often each task came before.

    Raises DataError naming file, line and field, also for an episode id that stands twice.
    """
    attempts: Counter[str] = Counter()
    found: dict[str, int] = {}
    trajectories = []
    for number, line in read_numbered(path, model):
        try:
            trajectory = read(line, attempts)
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
        if trajectory.id in found:
            raise DataError(f"{path}, line {number}: id: {trajectory.id!r} stands in line {found[trajectory.id]} too")
        found[trajectory.id] = number
        attempts[trajectory.task_id] += 1
        trajectories.append(trajectory)
    return trajectories


def _text_part(number: int, part: object) -> str:
    kind = part.get("type") if isinstance(part, dict) else type(part).__name__
    text = part.get("text") if isinstance(part, dict) else part
    if kind not in {"text", "input_text", "output_text", "str"} or not isinstance(text, str):
        raise ValueError(f"part {number} is of type {kind}; only text can be read")
    return text
