"""The base of every record, and the messages, requests and replies of language models in the OpenAI chat format."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

Share = Annotated[float, Field(ge=0, le=1)]  # a NaN is out of bounds too
Count = Annotated[int, Field(ge=0)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def content_hash(value: Any) -> str:
    """12 hex digits of the SHA-256 of `value` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:12]


MOST_NESTED = 200  # levels of lists and objects, as in pydantic: functions that walk a value are recursive


def json_value(text: str | bytes, *, encodable: bool = False) -> Any:
    """The value of JSON text from outside.

    Raises ValueError, also for a value nested more deeply than MOST_NESTED and, if it has to be `encodable`, for one
    that holds half of a surrogate pair, which no file and no tokenizer takes.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if len(text) > 2 * MOST_NESTED and is_deep(value):
        raise ValueError("nested too deeply")
    if encodable:
        json.dumps(value, ensure_ascii=False).encode()
    return value


def is_deep(value: object) -> bool:
    """Whether lists and objects are nested more deeply than MOST_NESTED."""
    level = [value]
    for _ in range(MOST_NESTED):
        if not level:
            return False
        lists = [child for parent in level if isinstance(parent, list) for child in parent]
        level = lists + [child for parent in level if isinstance(parent, dict) for child in parent.values()]
    return True


class Record(BaseModel):
    """Frozen base; an unknown field is an error, so that old files fail loudly, and so is NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ToolCall(Record):
    """One call of a tool, as in the OpenAI chat format: `arguments` is the text of a JSON object."""

    name: str
    arguments: str = "{}"
    id: str = ""  # pairs the call with its result; "" until the call is part of an episode

    @staticmethod
    def of(tool: str, /, **arguments: JsonValue) -> ToolCall:
        """A call of `tool` with these arguments."""
        return ToolCall(name=tool, arguments=json.dumps(arguments, ensure_ascii=False))

    @staticmethod
    def from_text(tool: str, text: str) -> ToolCall:
        """A call with the arguments of the JSON object that `text` is, or else with `text` as its only argument."""
        whole = text.strip() in {"", "{}"} or ToolCall(name=tool, arguments=text).values
        return ToolCall(name=tool, arguments=text or "{}") if whole else ToolCall.of(tool, argument=text)

    @property
    def values(self) -> dict[str, JsonValue]:
        """The arguments by name; empty if the text is no JSON object (a log of another tool may hold anything)."""
        try:
            found = json_value(self.arguments)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    @property
    def argument(self) -> str:
        """The call's only argument if it is text, "" if there is no argument, else the JSON text of all arguments."""
        values = self.values
        if not values:
            return "" if self.arguments.strip() in {"", "{}"} else self.arguments
        only = next(iter(values.values()))
        return only if len(values) == 1 and isinstance(only, str) else self.arguments

    @property
    def key(self) -> tuple[str, str]:
        """The tool and its argument: equal for two calls that do the same, whatever their ids are."""
        return self.name, self.argument


class ContentPart(Record):
    """One part of a message: text, or something else (an image, say) kept as it came in `data`."""

    type: str = "text"
    text: str = ""
    data: JsonValue = None


class Message(Record):
    """One chat message in the OpenAI format. A tool's result has the role `tool` and the id of its call."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | tuple[ContentPart, ...] = ""
    reasoning: str = ""  # the thoughts of an assistant turn, apart from its content
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None

    @property
    def text(self) -> str:
        """The content as text; if it has several parts, the text parts, one a line."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(part.text for part in self.content if part.type == "text")


def result_of(calls: Sequence[ToolCall], number: int, text: str) -> Message:
    """The message that answers call `number` of a turn, or the turn itself where it holds no valid call."""
    if number < len(calls):
        return Message(role="tool", content=text, tool_call_id=calls[number].id)
    return Message(role="user", content=text)


class ToolSpec(Record):
    """One tool as it is described to the policy: `argument` names its only, textual argument.

    A tool of several (or no) arguments has their JSON schema in `parameters`.
    """

    name: str
    argument: str
    description: str
    parameters: dict[str, JsonValue] | None = None

    @property
    def argument_schema(self) -> dict[str, JsonValue]:
        """The JSON schema of the arguments."""
        if self.parameters is not None:
            return self.parameters
        return {"type": "object", "properties": {self.argument: {"type": "string"}}, "required": [self.argument]}


class ChatRequest(Record):
    """A request to a chat model. Temperature 0 = greedy.

    A server is asked to obey `response_schema` if it can; the caller validates the answer all the same. `tools` are
    passed to a server that accepts tools; they are empty where the prompt describes the tools.
    """

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    response_schema: dict[str, JsonValue] | None = None
    max_tokens: int = Field(1024, ge=1)
    temperature: float = Field(0.0, ge=0)
    seed: int = 0


class Reply(Record):
    """The answer of a chat model, with `reasoning` apart from `text`. Token counts are the server's own (0: unknown).

    `finish` "refused": the model, or a filter of its server, declined to answer; `text` is its explanation, if any.
    `tool_calls` are those of a request with tools, as they came: nobody has checked them.
    """

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish: Literal["stop", "length", "refused"] = "stop"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Generation(Record):
    """What an engine returns: sampled ids, their raw logprobs, their text (without the end of turn)."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish: Literal["stop", "length"]


class Sampling(Record):
    """How one answer is sampled. Temperature 0 = greedy."""

    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
