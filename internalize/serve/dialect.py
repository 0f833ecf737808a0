"""The common part of the endpoint's wire formats. A format is one file with one object: see `Dialect`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from pydantic import TypeAdapter, ValidationError

from internalize.errors import DataError
from internalize.inference import tool_schema
from internalize.inference.token_estimate import estimated_tokens
from internalize.inference.tool_formats import TOOL_FORMATS, as_text
from internalize.records import ActionTurn, ContentPart, Message, ToolSpec, content_hash, json_value
from internalize.runs.files import first_problem

from .records import AgentCall

Body = dict[str, Any]  # a JSON object as it is sent or received
_PIECE = 24  # characters in a piece of a streamed text


class Answer(NamedTuple):
    """A turn of the policy on its way to an agent."""

    id: str
    model: str
    created: int
    turn: ActionTurn
    prompt_tokens: int  # estimated
    completion_tokens: int

    @staticmethod
    def of(name: str, model: str, created: float, turn: ActionTurn, messages: Sequence[Message]) -> Answer:
        """An answer with the token counts of the turn where they are known, else with estimates."""
        prompt = sum(estimated_tokens(message.text) for message in messages)
        return Answer(name, model, int(created), turn, prompt, len(turn.token_ids) or estimated_tokens(turn.text))


class Dialect(Protocol):
    """One wire format. Bodies are JSON objects; events of a stream are those of server-sent events."""

    path: str  # path after the base URL
    end: bytes  # a stream that holds this is complete

    def read(self, body: Body) -> AgentCall:
        """The request. Raises DataError naming the field that cannot be read."""
        ...

    def hinted(self, body: Body, hint: str, system: str) -> Body:
        """A copy of the request with `hint` at the end of its last message and `system` in the system message."""
        ...

    def answer(self, answer: Answer) -> Body:
        """The whole answer as one body."""
        ...

    def events(self, answer: Answer, call: AgentCall) -> Iterator[bytes]:
        """The answer as a stream of events."""
        ...

    def turn(self, answer: Body) -> ActionTurn | None:
        """The turn in an answer of another server; None if there is none."""
        ...

    def streamed_turn(self, events: Sequence[Body]) -> ActionTurn | None:
        """The turn in the events of a stream; None if it is incomplete."""
        ...

    def error(self, status: int, message: str, code: str) -> Body:
        """An error in the form that clients of this format expect."""
        ...


def validated(adapter: TypeAdapter[Any], body: Body) -> None:
    """Check a request against the provider's own types. Raises DataError naming the field."""
    field = ""
    try:
        for name, value in adapter.validate_python(body).items():
            field = f"{name}."
            _exhaust(value)
    except ValidationError as error:
        raise DataError(field + first_problem(error)) from None


def _exhaust(value: Any) -> None:
    """Walk through the iterators that pydantic makes for `Iterable`, which check their members only then."""
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for member in value:
            _exhaust(member)


def event(body: Body, name: str = "") -> bytes:
    """One server-sent event, in ASCII, because some clients take other characters for the end of a line."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(body)}\n\n".encode()


def events_of(stream: bytes) -> list[Body]:
    """The JSON objects of a whole stream, without other events (`[DONE]`, a comment)."""
    found = []
    for block in stream.decode("utf-8", "replace").replace("\r\n", "\n").split("\n\n"):
        data = "\n".join(line[5:].strip() for line in block.split("\n") if line.startswith("data:"))
        try:
            found.append(json_value(data))
        except ValueError:
            continue
    return [body for body in found if isinstance(body, dict)]


def pieces(text: str) -> Iterator[str]:
    """A text in pieces for streaming."""
    for start in range(0, len(text), _PIECE):
        yield text[start : start + _PIECE]


def tool_spec(name: str, description: str, parameters: Mapping[str, Any] | None) -> ToolSpec:
    """A tool for the policy; one that needs only a text has the short form."""
    schema = dict(parameters or {"type": "object", "properties": {}})
    only = tool_schema.only_argument(schema)
    if only and tool_schema.takes_text(schema) and only in tool_schema.required(schema):
        plain = not tool_schema.properties(schema)[only].keys() - {"type", "description", "title"}
        if plain:
            return ToolSpec(name=name, argument=only, description=description)
    return ToolSpec(name=name, argument=only or "", description=description, parameters=schema)


def content_of(parts: Any, kinds: Mapping[str, str]) -> str | tuple[ContentPart, ...]:
    """The content of a message: text, or parts if one of them is not text. `kinds` names the text of each kind of part.

    Of anything but text only the hash is kept.
    """
    if parts is None or isinstance(parts, str):
        return parts or ""
    found = []
    for part in parts:
        kind = part.get("type", "")
        if kind in kinds:
            found.append(ContentPart(text=str(part.get(kinds[kind]) or "")))
        else:
            found.append(ContentPart(type=kind, data=content_hash(part)))
    if all(part.type == "text" for part in found):
        return "\n".join(part.text for part in found)
    return tuple(found)


def written_turn(message: Message, *, cut_off: bool) -> ActionTurn:
    """A turn of another server. Its token ids belong to another tokenizer, so none are kept."""
    return ActionTurn(
        text=as_text(message, TOOL_FORMATS["json"]), message=message, finish="length" if cut_off else "stop"
    )


def merged(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages with consecutive messages of the assistant merged."""
    found: list[Message] = []
    for message in messages:
        if found and message.role == found[-1].role == "assistant":
            before = found.pop()
            texts = {
                "content": "\n".join(text for text in (before.text, message.text) if text),
                "reasoning": "\n".join(text for text in (before.reasoning, message.reasoning) if text),
            }
            message = before.model_copy(update={**texts, "tool_calls": before.tool_calls + message.tool_calls})  # noqa: PLW2901
        found.append(message)
    return tuple(found)


def unsupported(body: Body, harmless: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """The fields of a request that the policy cannot honour; `harmless` names the values without an effect."""
    return tuple(name for name, values in harmless.items() if body.get(name) is not None and body[name] not in values)


def openai_error(status: int, message: str, code: str) -> Body:
    """The error object of OpenAI's API."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": code or None}}
