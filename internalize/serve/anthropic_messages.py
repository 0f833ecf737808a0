"""Anthropic Messages."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any

from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from pydantic import TypeAdapter

from internalize.errors import DataError
from internalize.records import ActionTurn, Message, ToolCall, ToolSpec

from .dialect import Answer, Body, content_of, event, merged, pieces, tool_spec, unsupported, validated, written_turn
from .records import AgentCall

_TEXT = {"text": "text"}
_HARMLESS: dict[str, Sequence[Any]] = {
    "output_config": ({},),
    "output_format": (),
    "container": (),
    "mcp_servers": ([],),
}
_EMPTY: dict[str, Body] = {"text": {"text": ""}, "thinking": {"thinking": ""}, "tool_use": {"input": {}}}
_KINDS = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 413: "request_too_large",
          429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip


@cache
def _request() -> TypeAdapter[Any]:
    return TypeAdapter(MessageCreateParamsNonStreaming)


class AnthropicMessages:
    """`dialect.Dialect` of /messages."""

    path = "/messages"
    end = b"message_stop"

    def read(self, body: Body) -> AgentCall:
        """Parse the request."""
        validated(_request(), {name: value for name, value in body.items() if name != "stream"})
        system = [Message(role="system", content=content_of(body["system"], _TEXT))] if body.get("system") else []
        turns = [message for given in body["messages"] for message in _messages(given)]
        forbidden = (body.get("tool_choice") or {}).get("type") == "none"
        return AgentCall(
            messages=merged([*system, *turns]),
            tools=() if forbidden else tuple(map(_tool, body.get("tools") or ())),
            max_tokens=body["max_tokens"],
            stop=tuple(body.get("stop_sequences") or ()),
            stream=bool(body.get("stream")),
            unsupported=unsupported(body, _HARMLESS),
        )

    def hinted(self, body: Body, hint: str, system: str) -> Body:
        """The hint becomes the last part of the last message; global experience that of the system message."""
        body = copy.deepcopy(body)
        if hint:
            body["messages"][-1]["content"] = _extended(body["messages"][-1]["content"], hint)
        if system:
            body["system"] = _extended(body["system"], system) if body.get("system") else system
        return body

    def answer(self, answer: Answer) -> Body:
        """A message."""
        usage = {"input_tokens": answer.prompt_tokens, "output_tokens": answer.completion_tokens}
        return {**_head(answer), "content": _blocks(answer.turn), "stop_reason": _stop(answer.turn), "usage": usage}

    def events(self, answer: Answer, call: AgentCall) -> Iterator[bytes]:  # noqa: ARG002 - usage is always told
        """The events of a message: each block is opened, filled and closed."""

        def sse(kind: str, **fields: Any) -> bytes:
            return event({"type": kind, **fields}, kind)

        usage = {"input_tokens": answer.prompt_tokens, "output_tokens": 0}
        yield sse("message_start", message={**_head(answer), "content": [], "stop_reason": None, "usage": usage})
        for index, block in enumerate(_blocks(answer.turn)):
            yield sse("content_block_start", index=index, content_block=block | _EMPTY[block["type"]])
            for piece in pieces(_filling(block)):
                yield sse("content_block_delta", index=index, delta=_delta(block["type"], piece))
            yield sse("content_block_stop", index=index)
        delta = {"stop_reason": _stop(answer.turn), "stop_sequence": None}
        yield sse("message_delta", delta=delta, usage={"output_tokens": answer.completion_tokens})
        yield sse("message_stop")

    def turn(self, answer: Body) -> ActionTurn | None:
        """The blocks of a message as one turn."""
        if answer.get("type") != "message" or not answer.get("stop_reason"):
            return None
        messages = merged(_messages({"role": "assistant", "content": answer.get("content") or []}))
        message = messages[0] if messages else Message(role="assistant")
        return written_turn(message, cut_off=answer["stop_reason"] == "max_tokens")

    def streamed_turn(self, events: Sequence[Body]) -> ActionTurn | None:
        """The turn put together from the events of a stream."""
        whole: Body = {"type": "message", "content": []}
        arguments: dict[int, str] = {}
        for one in events:
            if one.get("type") == "content_block_start":
                whole["content"].append(dict(one["content_block"]))
            elif one.get("type") == "content_block_delta":
                block, delta = whole["content"][one["index"]], one["delta"]
                for name in ("text", "thinking"):
                    if name in delta:
                        block[name] = block.get(name, "") + delta[name]
                if "partial_json" in delta:
                    arguments[one["index"]] = arguments.get(one["index"], "") + delta["partial_json"]
            elif one.get("type") == "message_delta":
                whole["stop_reason"] = one["delta"].get("stop_reason")
        if not any(one.get("type") == "message_stop" for one in events):
            return None
        for index, text in arguments.items():
            whole["content"][index]["input"] = json.loads(text or "{}")
        return self.turn(whole)

    def error(self, status: int, message: str, code: str) -> Body:  # noqa: ARG002 - its kinds stand for a status
        """The error object of Anthropic's API."""
        kind = _KINDS.get(status, "api_error" if status >= 500 else "invalid_request_error")
        return {"type": "error", "error": {"type": kind, "message": message}}


def _messages(given: Body) -> Iterable[Message]:
    """The chat messages of one message: each result of a tool is its own message, before the text beside it."""
    content, role = given["content"], given["role"]
    blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
    results = [b for b in blocks if b.get("type") == "tool_result"]
    for block in results:
        text = content_of(block.get("content"), _TEXT)
        yield Message(role="tool", content=text, tool_call_id=block["tool_use_id"])
    calls = [
        ToolCall(id=b["id"], name=b["name"], arguments=json.dumps(b["input"], ensure_ascii=False))
        for b in blocks
        if b.get("type") == "tool_use"
    ]
    thoughts = [b["thinking"] for b in blocks if b.get("type") == "thinking"]
    others = [b for b in blocks if b.get("type") not in {"tool_result", "tool_use", "thinking", "redacted_thinking"}]
    if others or calls or thoughts or not results:
        yield Message(
            role=role, content=content_of(others, _TEXT), reasoning="\n".join(thoughts), tool_calls=tuple(calls)
        )


def _tool(tool: Body) -> ToolSpec:
    if tool.get("type", "custom") != "custom":
        raise DataError(f"tools: one of type {tool['type']!r}; only tools with an input_schema are supported")
    return tool_spec(tool["name"], tool.get("description") or "", tool.get("input_schema"))


def _extended(content: Any, text: str) -> Any:
    if isinstance(content, str):
        return f"{content}\n{text}"
    return [*content, {"type": "text", "text": text}]


def _head(answer: Answer) -> Body:
    return {
        "id": f"msg_{answer.id}", "type": "message", "role": "assistant", "model": answer.model, "stop_sequence": None
    }  # fmt: skip


def _blocks(turn: ActionTurn) -> list[Body]:
    message, blocks = turn.message, list[Body]()
    if message.reasoning:
        blocks.append({"type": "thinking", "thinking": message.reasoning, "signature": ""})
    if message.text or not message.tool_calls:
        blocks.append({"type": "text", "text": message.text})
    calls = message.tool_calls
    return [*blocks, *({"type": "tool_use", "id": c.id, "name": c.name, "input": c.values} for c in calls)]


def _filling(block: Body) -> str:
    if block["type"] == "tool_use":
        return json.dumps(block["input"], ensure_ascii=False)
    return str(block[block["type"]])


def _delta(kind: str, piece: str) -> Body:
    if kind == "tool_use":
        return {"type": "input_json_delta", "partial_json": piece}
    return {"type": f"{kind}_delta", kind: piece}


def _stop(turn: ActionTurn) -> str:
    return "tool_use" if turn.message.tool_calls else "max_tokens" if turn.finish == "length" else "end_turn"
