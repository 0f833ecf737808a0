"""The three wire formats: what is answered fits the providers' own types, and what is read says the same in each."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("anthropic", reason="needs the extra 'serve'")
pytest.importorskip("starlette", reason="needs the extra 'serve'")

from anthropic.types import Message as AnthropicMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from internalize.errors import DataError
from internalize.records import ActionTurn, Message, ToolCall
from internalize.serve.anthropic_messages import AnthropicMessages
from internalize.serve.dialect import Answer, Dialect, events_of
from internalize.serve.openai_chat import OpenAIChat
from internalize.serve.openai_responses import OpenAIResponses
from internalize.serve.records import AgentCall

DIALECTS: dict[str, Dialect] = {"chat": OpenAIChat(), "responses": OpenAIResponses(), "anthropic": AnthropicMessages()}
WHOLE: dict[str, TypeAdapter[Any]] = {
    "chat": TypeAdapter(ChatCompletion), "responses": TypeAdapter(Response), "anthropic": TypeAdapter(AnthropicMessage),
}  # fmt: skip
EVENT: dict[str, TypeAdapter[Any]] = {
    "chat": TypeAdapter(ChatCompletionChunk), "responses": TypeAdapter(ResponseStreamEvent),
    "anthropic": TypeAdapter(RawMessageStreamEvent),
}  # fmt: skip
SCHEMA = {"type": "object", "properties": {"box": {"type": "string"}}, "required": ["box"]}
REQUESTS: dict[str, dict[str, Any]] = {
    "chat": {
        "model": "m",
        "messages": [
            {"role": "system", "content": "Boxes."},
            {"role": "user", "content": [{"type": "text", "text": "Which?"}]},
            {"role": "assistant", "content": "I look.", "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"box":"3"}'}}]},
            {"role": "tool", "tool_call_id": "a", "content": "4"},
        ],
        "tools": [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": SCHEMA}}],
        "max_completion_tokens": 30,
    },
    "responses": {
        "model": "m",
        "instructions": "Boxes.",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "Which?"}]},
            {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
                {"type": "output_text", "text": "I look.", "annotations": []}]},
            {"type": "function_call", "call_id": "a", "name": "look", "arguments": '{"box":"3"}'},
            {"type": "function_call_output", "call_id": "a", "output": "4"},
        ],
        "tools": [{"type": "function", "name": "look", "description": "Look.", "parameters": SCHEMA, "strict": True}],
        "max_output_tokens": 30,
    },
    "anthropic": {
        "model": "m",
        "max_tokens": 30,
        "system": [{"type": "text", "text": "Boxes."}],
        "messages": [
            {"role": "user", "content": "Which?"},
            {"role": "assistant", "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "a", "name": "look", "input": {"box": "3"}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": "4"}]},
        ],
        "tools": [{"name": "look", "description": "Look.", "input_schema": SCHEMA}],
    },
}  # fmt: skip


def answer(message: Message, finish: str = "stop") -> Answer:
    turn = ActionTurn(text="t", message=message, finish=finish)  # type: ignore[arg-type]
    return Answer("1", "m", 1, turn, 3, 2)


@pytest.mark.parametrize("name", DIALECTS)
def test_the_same_request_reads_the_same(name: str) -> None:
    call = DIALECTS[name].read(REQUESTS[name])
    roles = [(m.role, m.text, [(c.name, c.values, c.id) for c in m.tool_calls], m.tool_call_id) for m in call.messages]
    assert roles == [
        ("system", "Boxes.", [], None),
        ("user", "Which?", [], None),
        ("assistant", "I look.", [("look", {"box": "3"}, "a")], None),
        ("tool", "4", [], "a"),
    ]
    (tool,) = call.tools
    assert (tool.name, tool.argument, tool.description, tool.parameters) == ("look", "box", "Look.", None)
    assert (call.max_tokens, call.stream, call.unsupported) == (30, False, ())


@pytest.mark.parametrize("name", DIALECTS)
@given(text=st.text(max_size=60), thought=st.text(max_size=30), calls=st.lists(st.text(max_size=40), max_size=3))
@settings(max_examples=30, deadline=None)
def test_answers_fit_the_providers_types_and_a_stream_says_the_same(
    name: str, text: str, thought: str, calls: list[str]
) -> None:
    dialect = DIALECTS[name]
    made = tuple(
        ToolCall(name="look", arguments=json.dumps({"box": box}, ensure_ascii=False), id=f"call_{n}")
        for n, box in enumerate(calls)
    )
    message = Message(role="assistant", content=text, reasoning=thought, tool_calls=made)
    whole = json.loads(json.dumps(dialect.answer(answer(message))))
    WHOLE[name].validate_python(whole)
    stream = b"".join(dialect.events(answer(message), AgentCall(messages=(), stream=True, stream_usage=True)))
    events = events_of(stream)
    for one in events:
        EVENT[name].validate_python(one)
    assert dialect.end in stream
    for turn in (dialect.turn(whole), dialect.streamed_turn(events)):
        assert turn is not None
        assert turn.message == message
    assert dialect.streamed_turn(events[: len(events) // 2]) is None


@pytest.mark.parametrize("name", DIALECTS)
def test_a_hint_ends_the_last_message_of_a_copy(name: str) -> None:
    dialect, body = DIALECTS[name], REQUESTS[name]
    before = json.dumps(body)
    sent = dialect.hinted(body, "HINT", "RULES")
    assert json.dumps(body) == before
    read = dialect.read(sent)
    assert read.messages[0].text.endswith("RULES")
    assert read.messages[0].role == "system"
    assert read.messages[-1].text.endswith("HINT")
    assert [m.text for m in read.messages[1:-1]] == ["Which?", "I look."] + (["4"] if name == "anthropic" else [])


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("chat", {"messages": [{"role": "boss", "content": "x"}]}, "messages"),
        ("chat", {"messages": None}, "messages"),
        ("chat", {"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools: one of type 'custom'"),
        ("responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
        ("responses", {"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ("anthropic", {"max_tokens": "many"}, "max_tokens"),
        ("anthropic", {"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools: one of type"),
    ],
)
def test_what_cannot_be_read_is_named(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        DIALECTS[name].read(REQUESTS[name] | change)


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("chat", {"n": 2}, "n"),
        ("chat", {"response_format": {"type": "json_object"}}, "response_format"),
        ("responses", {"text": {"format": {"type": "json_object"}}}, "text.format"),
    ],
)
def test_what_the_policy_cannot_do_is_named(name: str, change: dict[str, Any], field: str) -> None:
    assert DIALECTS[name].read(REQUESTS[name] | change).unsupported == (field,)
