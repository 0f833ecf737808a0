"""engines/scripted.py: each conversation follows its own script, and fails where it is told to."""

from __future__ import annotations

import asyncio

import pytest

from internalize.errors import InfrastructureError, UserError
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.interfaces import Engine
from internalize.records import Message
from tests.tiny import tiny_tokenizer

RENDERER = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
PROMPT = RENDERER.context((Message(role="user", content="Where is json?"),), []).ids


def ask(engine: Engine, conversation: str) -> str:
    got = asyncio.run(engine.generate(PROMPT, conversation=conversation, seed=0))
    assert RENDERER.decode(got.token_ids) == got.text
    assert got.token_ids[-1] in RENDERER.stop_ids
    assert len(got.logprobs) == len(got.token_ids)
    return got.text


def test_every_conversation_goes_through_the_list() -> None:
    engine = ScriptedEngine(["search[a]", "answer[b]"], RENDERER)
    assert [ask(engine, "x"), ask(engine, "y"), ask(engine, "x")] == ["search[a]", "search[a]", "answer[b]"]
    with pytest.raises(UserError, match="'x' has no reply number 2"):
        ask(engine, "x")
    engine.release("x")
    assert ask(engine, "x") == "search[a]"


def test_a_mapping_gives_each_conversation_its_script() -> None:
    engine = ScriptedEngine({"x": ["a"], "y": ["b"]}, RENDERER)
    assert [ask(engine, "y"), ask(engine, "x")] == ["b", "a"]
    with pytest.raises(UserError):
        ask(engine, "z")


def test_a_function_sees_name_and_prompt() -> None:
    engine = ScriptedEngine(lambda name, text: f"{name}:{'json' in text}", RENDERER)
    assert ask(engine, "x") == "x:True"
    assert engine.prompts == [("x", PROMPT)]


def test_failures_come_at_their_calls_and_use_up_no_reply() -> None:
    engine = ScriptedEngine(["a", "b"], RENDERER, failures={1})
    assert ask(engine, "x") == "a"
    with pytest.raises(InfrastructureError, match="call 1"):
        ask(engine, "x")
    assert ask(engine, "x") == "b"
