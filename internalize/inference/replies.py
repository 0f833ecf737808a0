"""Reads the answer of a chat completion (text, reasoning, tool calls, refusals) in the forms of many servers.

openai's own classes are not used, because they require fields that some servers omit.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field, JsonValue

from internalize.errors import ContextError
from internalize.records import Reply, ToolCall

from .call_formats import split_thought
from .client import Body, MalformedError, SaysNothingError, TokenCounts
from .tool_formats import TOOL_FORMATS

_CUT_OFF = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"})
_DECLINED = frozenset(
    {"content_filter", "refusal", "safety", "sensitive", "prohibited_content", "guardrail_intervened"}
)


class _Function(BaseModel):
    name: str
    arguments: str


class _ToolCall(BaseModel):
    function: _Function


class _Part(BaseModel):
    type: str = "text"
    text: str | None = None
    thinking: str | list[_Part] | None = None
    refusal: str | None = None

    @property
    def said(self) -> tuple[str, str]:
        """The kind of this part and its text. Raises MalformedError for a part without text."""
        if self.refusal is not None:
            return "refusal", self.refusal
        if self.thinking is not None:
            return "reasoning", self.thinking if isinstance(self.thinking, str) else _joined(self.thinking)["text"]
        if self.text is None:
            raise MalformedError(f"a content of type {self.type!r}, which is no text")
        return ("reasoning" if "think" in self.type or "reason" in self.type else "text"), self.text


def _joined(parts: list[_Part]) -> dict[str, str]:
    """The text of the parts of each kind."""
    texts = {"text": "", "reasoning": "", "refusal": ""}
    for kind, text in (part.said for part in parts):
        texts[kind] += text
    return texts


class _Message(BaseModel):
    content: str | list[_Part] | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None  # the name that other servers use
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _Choice(BaseModel):
    message: _Message = _Message()
    finish_reason: str | None = None
    error: JsonValue = None


class _Answer(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]


def read_reply(answer: Body, *, calls: bool = False) -> Reply:
    """The text of a chat completion and its reasoning; tool calls that the server has parsed become text again.

    With `calls`, for a request with tools, they stay calls.

    Raises MalformedError or ValidationError if there is neither. An empty text is valid only if it was cut off, or if
    the server reports sampled tokens, so that the model itself chose it. A refusal is a reply with `finish` "refused".
    """
    choice, counts = _Answer.model_validate(answer).choices[0], TokenCounts.of(answer)
    message, reason = choice.message, (choice.finish_reason or "").lower()
    if choice.error:
        raise MalformedError(f"an error in an answer ({str(choice.error)[:240]})")
    content = message.content if isinstance(message.content, list) else [_Part(text=message.content or "")]
    said = _joined(content)
    called = tuple(map(_called, message.tool_calls or ()))
    text = "\n".join([*([said["text"]] if said["text"] else []), *map(TOOL_FORMATS["json"].format, called)])
    reasoning = message.reasoning_content or message.reasoning or said["reasoning"]
    refusal = message.refusal or said["refusal"]
    finish: Literal["stop", "length", "refused"] = "length" if reason in _CUT_OFF else "stop"
    if refusal or reason in _DECLINED:
        finish, text = "refused", refusal or text
    elif finish == "stop" and _is_empty(message, text, reasoning, counts):
        raise SaysNothingError(f"an answer without content (finish_reason {choice.finish_reason})")
    elif reason == "model_context_window_exceeded" and not text.strip():
        raise ContextError("the prompt leaves no room for an answer (finish_reason model_context_window_exceeded)")
    if calls and called and finish != "refused":
        text = said["text"]
    if not reasoning:
        reasoning, text = split_thought(text)
    kept = called if calls else ()
    return Reply(text=text, reasoning=reasoning, tool_calls=kept, finish=finish, **counts.model_dump())


def _called(call: _ToolCall) -> ToolCall:
    """A call. Arguments that are an object become canonical JSON, because servers escape text differently."""
    found = ToolCall(name=call.function.name, arguments=call.function.arguments)
    return ToolCall.of(found.name, **found.values) if found.values else found


def _is_empty(message: _Message, text: str, reasoning: str, counts: TokenCounts) -> bool:
    absent = message.content is None and not text and not reasoning
    return absent or not (text.strip() or counts.completion_tokens)
