"""The schema of log lines written by other programs. Known faults are repaired as they are read (`repairs`).

Unknown fields are ignored. The fields that are read are validated, and an error names the field. With `Notes` as the
context of a validation, repairs and dropped parts are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    RootModel,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from internalize.records import Termination
from internalize.records.messages import Count

from . import repairs
from .notes import Notes


def notes_of(info: ValidationInfo) -> Notes:
    """The counts of the reading that this validation is part of."""
    return info.context if isinstance(info.context, Notes) else Notes()


Number = Annotated[
    float,
    BeforeValidator(lambda value, info: repairs.score_of(value, notes_of(info))),
    Field(strict=True, allow_inf_nan=False),
]
Score = Annotated[Number, Field(ge=0, le=1)]
Name = Annotated[str, BeforeValidator(repairs.name_of)]


class Wire(BaseModel):
    """Base of the log records: unknown fields are ignored, and empty ones are not written."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_serializer(mode="wrap")
    def _without_empty_fields(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            key: value for key, value in write(self).items() if value is not None and (value != [] or key == "messages")
        }


class Document(RootModel[dict[str, JsonValue]]):
    """A JSON object whose fields another package has validated."""


class ChatFunction(Wire):
    """Name and arguments of a call; an object of arguments becomes JSON text."""

    name: str = Field(min_length=1)
    arguments: str = "{}"

    @field_validator("arguments", mode="before")
    @classmethod
    def _as_text(cls, value: object, info: ValidationInfo) -> object:
        return repairs.arguments_of(value, notes_of(info))


class ChatCall(Wire):
    """One entry of `tool_calls`."""

    id: Name | None = None
    type: str | None = "function"
    function: ChatFunction

    @model_validator(mode="before")
    @classmethod
    def _repaired(cls, value: object, info: ValidationInfo) -> object:
        return repairs.call_of(value, notes_of(info))


class ChatMessage(Wire):
    """One message of a conversation; `weight` 0 and `left_out`, a reason, keep a model's turn from being learnt."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str = ""
    reasoning_content: str | None = None
    tool_calls: tuple[ChatCall, ...] = ()
    tool_call_id: Name | None = None
    weight: float | None = None
    left_out: str | None = None
    media: bool | None = None  # whether a part that is no text was dropped

    @model_validator(mode="before")
    @classmethod
    def _repaired(cls, value: object, info: ValidationInfo) -> object:
        return repairs.message_of(value, notes_of(info))


class ChatTool(Wire):
    """The function of one entry of `tools`."""

    name: str = Field(min_length=1)
    description: str = ""
    parameters: dict[str, JsonValue] | None = None

    @model_validator(mode="before")
    @classmethod
    def _repaired(cls, value: object, info: ValidationInfo) -> object:
        return repairs.tool_of(value, notes_of(info))


class ChatLine(Wire):
    """One line: the messages and metadata of one episode. `task` identifies the task, `id` the episode."""

    id: Name | None = None
    task: Name | None = None
    env: Name | None = None
    split: Name | None = None
    iteration: Count | None = 0
    model: Name | None = None
    score: Number | None = None
    reward: Number | None = None
    error: JsonValue = None
    termination: Termination | None = None
    tools: tuple[ChatTool, ...] | None = None
    messages: tuple[ChatMessage, ...]

    @model_validator(mode="before")
    @classmethod
    def _repaired(cls, value: object, info: ValidationInfo) -> object:
        return repairs.line_of(value, notes_of(info)) if isinstance(value, Mapping) else value
