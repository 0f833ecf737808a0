"""OpenAI Responses without server state: every request must bring its whole history."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from openai.types.responses.response_create_params import ResponseCreateParamsNonStreaming
from pydantic import TypeAdapter

from internalize.errors import DataError
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

_TEXT = {"input_text": "text", "output_text": "text", "text": "text", "refusal": "refusal"}
_HARMLESS: dict[str, Sequence[Any]] = {"background": (False,), "top_logprobs": (0,), "prompt": (), "moderation": ()}
_STATE = ("previous_response_id", "conversation")
_EMPTY: dict[str, Body] = {
    "message": {"content": [], "status": "in_progress"},
    "function_call": {"arguments": "", "status": "in_progress"},
    "reasoning": {"summary": []},
}
_LAST = {"response.completed", "response.incomplete"}


@cache
def _request() -> TypeAdapter[Any]:
    return TypeAdapter(ResponseCreateParamsNonStreaming)


class OpenAIResponses:
    """`dialect.Dialect` of /responses."""

    path = "/responses"
    end = b"response.completed"

    def read(self, body: Body) -> AgentCall:
        """Parse the request."""
        validated(_request(), {name: value for name, value in body.items() if name != "stream"})
        for name in _STATE:
            if body.get(name):
                raise DataError(f"{name}: nothing is kept between requests; send the whole history as input")
        given = body.get("input") or []
        items = [{"role": "user", "content": given}] if isinstance(given, str) else given
        system = [Message(role="system", content=body["instructions"])] if body.get("instructions") else []
        structured = ((body.get("text") or {}).get("format") or {}).get("type", "text") != "text"
        return AgentCall(
            messages=merged([*system, *map(_message, items)]),
            tools=() if body.get("tool_choice") == "none" else tuple(map(_tool, body.get("tools") or ())),
            max_tokens=body.get("max_output_tokens"),
            stream=bool(body.get("stream")),
            unsupported=(*unsupported(body, _HARMLESS), *(["text.format"] if structured else [])),
        )

    def hinted(self, body: Body, hint: str, system: str) -> Body:
        """The hint ends the last item; global experience ends the instructions."""
        body = copy.deepcopy(body)
        if system:
            body["instructions"] = "\n".join(text for text in (body.get("instructions"), system) if text)
        if hint and isinstance(body["input"], str):
            body["input"] += f"\n{hint}"
        elif hint:
            last = body["input"][-1]
            field = "output" if last.get("type") == "function_call_output" else "content"
            if isinstance(last[field], list):
                last[field].append({"type": "input_text", "text": hint})
            else:
                last[field] = f"{last[field]}\n{hint}"
        return body

    def answer(self, answer: Answer) -> Body:
        """A response."""
        return _response(answer, _output(answer), "incomplete" if answer.turn.finish == "length" else "completed")

    def events(self, answer: Answer, call: AgentCall) -> Iterator[bytes]:  # noqa: ARG002 - usage is always told
        """The events of a response: each item is opened, filled and closed."""
        numbers = iter(range(1_000_000))

        def sse(kind: str, **fields: Any) -> bytes:
            return event({"type": kind, "sequence_number": next(numbers), **fields}, kind)

        for kind in ("response.created", "response.in_progress"):
            yield sse(kind, response=_response(answer, [], "in_progress"))
        for place, item in enumerate(_output(answer)):
            at = {"item_id": item["id"], "output_index": place}
            yield sse("response.output_item.added", output_index=place, item=item | _EMPTY[item["type"]])
            yield from _filling(item, at, sse)
            yield sse("response.output_item.done", output_index=place, item=item)
        whole = self.answer(answer)
        yield sse(f"response.{whole['status']}", response=whole)

    def turn(self, answer: Body) -> ActionTurn | None:
        """The items of a response as one turn."""
        if answer.get("status") not in {"completed", "incomplete"}:
            return None
        messages = merged(_message(item) for item in answer.get("output") or ())
        if len(messages) != 1 or messages[0].role != "assistant":
            return None
        return written_turn(messages[0], cut_off=answer["status"] == "incomplete")

    def streamed_turn(self, events: Sequence[Body]) -> ActionTurn | None:
        """The turn of the last event, which holds the whole response."""
        return next((self.turn(one["response"]) for one in reversed(events) if one.get("type") in _LAST), None)

    def error(self, status: int, message: str, code: str) -> Body:
        """The error object of OpenAI's API."""
        return openai_error(status, message, code)


def _message(item: Body) -> Message:
    kind = item.get("type") or "message"
    if kind == "function_call":
        call = ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"] or "{}")
        return Message(role="assistant", tool_calls=(call,))
    if kind == "function_call_output":
        return Message(role="tool", content=content_of(item["output"], _TEXT), tool_call_id=item["call_id"])
    if kind == "reasoning":
        parts = item.get("content") or item.get("summary") or ()
        return Message(role="assistant", reasoning="\n".join(part.get("text") or "" for part in parts))
    if kind != "message":
        raise DataError(f"input: an item of type {kind!r}; only messages, function calls and reasoning are supported")
    role = "system" if item["role"] == "developer" else item["role"]
    return Message(role=role, content=content_of(item.get("content"), _TEXT))


def _tool(tool: Body) -> ToolSpec:
    if tool.get("type") != "function":
        raise DataError(f"tools: one of type {tool.get('type')!r}; only functions are supported")
    return tool_spec(tool["name"], tool.get("description") or "", tool.get("parameters"))


def _output(answer: Answer) -> list[Body]:
    message, items = answer.turn.message, list[Body]()
    if message.reasoning:
        texts = [{"type": "summary_text", "text": message.reasoning}]
        items.append({"id": f"rs_{answer.id}", "type": "reasoning", "summary": texts})
    if message.text or not message.tool_calls:
        content = [{"type": "output_text", "text": message.text, "annotations": [], "logprobs": []}]
        items.append(
            {
                "id": f"msg_{answer.id}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": content,
            }
        )
    for call in message.tool_calls:
        names = {"id": f"fc_{answer.id}_{call.id}", "call_id": call.id, "name": call.name}
        items.append({"type": "function_call", **names, "arguments": call.arguments, "status": "completed"})
    return items


def _filling(item: Body, at: Body, sse: Any) -> Iterator[bytes]:
    """The events between the opening and the closing of an item."""
    if item["type"] == "function_call":
        for piece in pieces(item["arguments"]):
            yield sse("response.function_call_arguments.delta", **at, delta=piece)
        done = {"name": item["name"], "arguments": item["arguments"]}
        yield sse("response.function_call_arguments.done", **at, **done)
    elif item["type"] == "message":
        part = item["content"][0]
        yield sse("response.content_part.added", **at, content_index=0, part={**part, "text": ""})
        for piece in pieces(part["text"]):
            yield sse("response.output_text.delta", **at, content_index=0, delta=piece, logprobs=[])
        yield sse("response.output_text.done", **at, content_index=0, text=part["text"], logprobs=[])
        yield sse("response.content_part.done", **at, content_index=0, part=part)
    else:
        part = item["summary"][0]
        yield sse("response.reasoning_summary_part.added", **at, summary_index=0, part={**part, "text": ""})
        for piece in pieces(part["text"]):
            yield sse("response.reasoning_summary_text.delta", **at, summary_index=0, delta=piece)
        yield sse("response.reasoning_summary_text.done", **at, summary_index=0, text=part["text"])
        yield sse("response.reasoning_summary_part.done", **at, summary_index=0, part=part)


def _response(answer: Answer, output: list[Body], status: str) -> Body:
    usage = {
        "input_tokens": answer.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answer.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answer.prompt_tokens + answer.completion_tokens,
    }
    return {
        "id": f"resp_{answer.id}",
        "object": "response",
        "created_at": answer.created,
        "model": answer.model,
        "status": status,
        "output": output,
        "usage": None if status == "in_progress" else usage,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
        "instructions": None,
        "metadata": {},
        "parallel_tool_calls": True,
        "temperature": None,
        "top_p": None,
        "tool_choice": "auto",
        "tools": [],
    }
