"""OpenAI chat completions."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming
from pydantic import TypeAdapter

from internalize.errors import DataError
from internalize.inference.renderer import chat_dict
from internalize.records import ActionTurn, Message, ToolCall, ToolSpec

from .dialect import (
    Answer,
    Body,
    content_of,
    event,
    merged,
    openai_error,
    pieces,
    tool_spec,
    unsupported,
    validated,
    written_turn,
)
from .records import AgentCall

_TEXT = {"text": "text", "refusal": "refusal"}
_HARMLESS: dict[str, Sequence[Any]] = {
    "n": (1,), "response_format": ({"type": "text"},), "logprobs": (False,), "logit_bias": ({},),
    "functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (),
}  # fmt: skip


@cache
def _request() -> TypeAdapter[Any]:
    return TypeAdapter(CompletionCreateParamsNonStreaming)


class OpenAIChat:
    """`dialect.Dialect` of /chat/completions."""

    path = "/chat/completions"
    end = b"data: [DONE]"

    def read(self, body: Body) -> AgentCall:
        """Parse the request."""
        validated(_request(), {name: value for name, value in body.items() if name != "stream"})
        options, stop = body.get("stream_options") or {}, body.get("stop") or ()
        return AgentCall(
            messages=merged(map(_message, body["messages"])),
            tools=() if body.get("tool_choice") == "none" else tuple(map(_tool, body.get("tools") or ())),
            max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
            stream=bool(body.get("stream")),
            stream_usage=bool(options.get("include_usage")),
            unsupported=unsupported(body, _HARMLESS),
        )

    def hinted(self, body: Body, hint: str, system: str) -> Body:
        """The hint ends the last message; global experience ends the first system message."""
        body = copy.deepcopy(body)
        messages = body["messages"]
        if hint:
            _extend(messages[-1], hint)
        if system and messages[0]["role"] in {"system", "developer"}:
            _extend(messages[0], system)
        elif system:
            messages.insert(0, {"role": "system", "content": system})
        return body

    def answer(self, answer: Answer) -> Body:
        """A chat completion."""
        turn = answer.turn
        message = {**chat_dict(turn.message), "refusal": None}
        message["content"] = turn.message.text or (None if turn.message.tool_calls else "")
        if turn.message.reasoning:
            message["reasoning_content"] = turn.message.reasoning
        choice = {"index": 0, "message": message, "finish_reason": _finish(turn), "logprobs": None}
        return {**_head(answer, "chat.completion"), "choices": [choice], "usage": _usage(answer)}

    def events(self, answer: Answer, call: AgentCall) -> Iterator[bytes]:
        """Chunks: the role, the thoughts, the text, each call, the end, the usage if it was asked for."""
        head, message = _head(answer, "chat.completion.chunk"), answer.turn.message

        def chunk(delta: Body, finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
            return event({**head, "choices": [choice]})

        yield chunk({"role": "assistant", "content": None if message.tool_calls else ""})
        for piece in pieces(message.reasoning):
            yield chunk({"reasoning_content": piece})
        for piece in pieces(message.text):
            yield chunk({"content": piece})
        for number, written in enumerate(chat_dict(message).get("tool_calls", ())):
            arguments = written["function"]["arguments"]
            yield chunk(
                {"tool_calls": [{**written, "index": number, "function": {**written["function"], "arguments": ""}}]}
            )
            for piece in pieces(arguments):
                yield chunk({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
        yield chunk({}, _finish(answer.turn))
        if call.stream_usage:
            yield event({**head, "choices": [], "usage": _usage(answer)})
        yield self.end + b"\n\n"

    def turn(self, answer: Body) -> ActionTurn | None:
        """The turn of the first choice."""
        choices = answer.get("choices") or []
        return _turn(choices[0]) if choices else None

    def streamed_turn(self, events: Sequence[Body]) -> ActionTurn | None:
        """The turn of the first choice; the SDK would rebuild the whole message at every chunk."""
        whole: Body = {"message": {"content": "", "reasoning": ""}}
        calls: dict[int, Body] = {}
        for chunk in events:
            if not isinstance(chunk.get("choices"), list):
                return None  # an error in mid-stream
            for choice in (choice for choice in chunk["choices"] if not choice.get("index")):
                whole["finish_reason"] = choice.get("finish_reason") or whole.get("finish_reason")
                _add(whole["message"], calls, choice.get("delta") or {})
        whole["message"]["tool_calls"] = list(calls.values())
        return _turn(whole) if whole.get("finish_reason") else None

    def error(self, status: int, message: str, code: str) -> Body:
        """The error object of OpenAI's API."""
        return openai_error(status, message, code)


def _add(message: Body, calls: dict[int, Body], delta: Body) -> None:
    """Add one piece of a streamed message to the pieces before it."""
    message["content"] += delta.get("content") or ""
    message["reasoning"] += delta.get("reasoning_content") or delta.get("reasoning") or ""
    for piece in delta.get("tool_calls") or ():
        call = calls.setdefault(piece.get("index", len(calls)), {"function": {"name": "", "arguments": ""}})
        function = piece.get("function") or {}
        call["id"] = piece.get("id") or call.get("id")
        call["function"]["name"] += function.get("name") or ""
        call["function"]["arguments"] += function.get("arguments") or ""


def _message(message: Body) -> Message:
    role = {"developer": "system", "function": "tool"}.get(message["role"], message["role"])
    calls = []
    for call in message.get("tool_calls") or ():
        if call.get("type", "function") != "function":
            raise DataError(f"messages: a tool call of type {call['type']!r}; only functions are supported")
        function = call["function"]
        calls.append(ToolCall(id=call.get("id") or "", name=function["name"], arguments=function["arguments"] or "{}"))
    return Message(
        role=role,
        content=content_of(message.get("content"), _TEXT),
        reasoning=message.get("reasoning_content") or message.get("reasoning") or "",
        tool_calls=tuple(calls),
        tool_call_id=message.get("tool_call_id"),
    )


def _tool(tool: Body) -> ToolSpec:
    if tool.get("type") != "function":
        raise DataError(f"tools: one of type {tool.get('type')!r}; only functions are supported")
    function = tool["function"]
    return tool_spec(function["name"], function.get("description") or "", function.get("parameters"))


def _extend(message: Body, text: str) -> None:
    if isinstance(message.get("content"), list):
        message["content"].append({"type": "text", "text": text})
    else:
        message["content"] = f"{message.get('content') or ''}\n{text}"


def _turn(choice: Body) -> ActionTurn:
    message = _message({**(choice.get("message") or {}), "role": "assistant"})
    return written_turn(message, cut_off=choice.get("finish_reason") == "length")


def _finish(turn: ActionTurn) -> str:
    return "tool_calls" if turn.message.tool_calls else turn.finish


def _head(answer: Answer, kind: str) -> Body:
    return {"id": f"chatcmpl-{answer.id}", "object": kind, "created": answer.created, "model": answer.model}


def _usage(answer: Answer) -> Body:
    total = answer.prompt_tokens + answer.completion_tokens
    counts = {"prompt_tokens": answer.prompt_tokens, "completion_tokens": answer.completion_tokens}
    return {**counts, "total_tokens": total}
