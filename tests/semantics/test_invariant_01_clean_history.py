"""Invariant 1: an injection is part of the step it served and of no later context."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from internalize.config.schema import RolloutConfig
from internalize.experience.inject import Injector
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Experience, Pattern
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.serve.history import trajectories_of
from tests.tiny import tiny_tokenizer
from tests.toy import Toy

ITEM = Experience.new("Look into the box that the question names before you answer.", "principle", "contrast")


def play(path: Path, injector: Injector) -> tuple[ScriptedEngine, TemplateRenderer, list]:
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    engine = ScriptedEngine(["look[100]", "look[7]", "answer[2]"], renderer)
    agent = TokenAgent(engine, renderer, RolloutConfig(max_steps=5), 4000, 4)
    env = Toy(size=1)
    found = asyncio.run(rollout(env.tasks("train"), env, agent, injector, Label("r", 1, 0, "c"), path=path))
    return engine, renderer, found


def test_a_stepwise_hint_is_shown_once_and_never_again(tmp_path: Path) -> None:
    engine, renderer, (trajectory,) = play(tmp_path / "t.jsonl", Injector("stepwise", (ITEM,), 1))
    shown = [renderer.tokenizer.decode(list(ids)) for _, ids in engine.prompts]
    assert [text.count(ITEM.text) for text in shown] == [1, 1, 1]  # one in the newest message, none in the history
    assert all(text.rfind(ITEM.text) > text.rfind("<|im_start|>user") for text in shown)
    assert all(step.injection and step.injection.item_ids == (ITEM.id,) for step in trajectory.steps)
    for number in range(4):
        assert not any(ITEM.text in m.content for m in trajectory.context(number))


def test_a_global_hint_stands_in_the_system_message_and_not_in_the_record_of_the_prompt(tmp_path: Path) -> None:
    engine, renderer, (trajectory,) = play(tmp_path / "t.jsonl", Injector("global", (ITEM,)))
    for _, ids in engine.prompts:
        system = renderer.tokenizer.decode(list(ids)).split("<|im_end|>")[0]
        assert ITEM.text in system
    assert not any(ITEM.text in m.content for m in trajectory.prompt)
    assert trajectory.global_injection
    assert trajectory.score == 1.0


def test_without_experience_the_prompt_is_the_students(tmp_path: Path) -> None:
    plain, _, (trajectory,) = play(tmp_path / "a.jsonl", Injector())
    hinted, renderer, _ = play(tmp_path / "b.jsonl", Injector("stepwise", (ITEM,), 1))
    for (_, clean), (_, shown) in zip(plain.prompts, hinted.prompts, strict=True):
        assert shown != clean
    assert renderer.context(trajectory.prompt, ()).ids == plain.prompts[0][1]


@pytest.mark.server
@pytest.mark.parametrize("dialect", ["openai-chat", "openai-responses", "anthropic-messages"])
@pytest.mark.parametrize("pattern", ["stepwise", "global"])
def test_through_the_endpoint_the_history_of_agent_and_record_stays_clean(dialect: str, pattern: Pattern) -> None:
    """Experience is in what the model reads, once, and in nothing that the agent or the record holds."""
    pytest.importorskip("starlette", reason="needs the extra 'serve'")
    pytest.importorskip(dialect.partition("-")[0], reason="needs the extra 'serve'")
    from tests.served import Served  # noqa: PLC0415

    injector = Injector(pattern, (ITEM,), 1)
    with Served(["look[100]", "look[7]", "answer[2]"], injector=injector, protocol="bracket") as served:
        seen = AGENTS[dialect](served.url)
    (episode,) = trajectories_of(served.calls)
    shown = [served.renderer.tokenizer.decode(list(ids)) for _, ids in served.engine.prompts]
    assert [text.count(ITEM.text) for text in shown] == [1, 1, 1]
    last = [text.rfind(ITEM.text) > text.rfind("<|im_start|>user") for text in shown]
    assert last == [pattern == "stepwise"] * 3
    assert ITEM.text not in json.dumps(seen)
    for number in range(4):
        assert not any(ITEM.text in m.text for m in episode.context(number))
    assert not any(ITEM.text in step.text for step in episode.steps)
    given = [step.injection for step in episode.steps] if pattern == "stepwise" else [episode.global_injection]
    assert all(injection and injection.item_ids == (ITEM.id,) for injection in given)
    # Without the experience the contexts are those of an agent that never had any.
    with Served(["look[100]", "look[7]", "answer[2]"], protocol="bracket") as plain:
        AGENTS[dialect](plain.url)
    assert [ids for _, ids in plain.engine.prompts] == [
        served.renderer.context(episode.prompt, episode.steps[:n]).ids for n in range(3)
    ]


QUESTION = "Which number is in box 100?"
SCHEMA = {"type": "object", "properties": {"box": {"type": "string"}}, "required": ["box"]}


def over_chat(url: str) -> Any:
    """A loop of three turns; its own history at the end."""
    import openai  # noqa: PLC0415 - an extra

    client, messages = openai.OpenAI(base_url=f"{url}/v1", api_key="x"), list[Any]()
    messages += [{"role": "system", "content": "Boxes."}, {"role": "user", "content": QUESTION}]
    tools: Any = [
        {"type": "function", "function": {"name": name, "description": "", "parameters": SCHEMA}}
        for name in ("look", "answer")
    ]
    for _ in range(3):
        turn = client.chat.completions.create(model="m", messages=messages, tools=tools).choices[0].message
        messages.append(turn.model_dump(exclude_none=True))
        for call in turn.tool_calls or ():
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "look into box 2"})
    return messages


def over_responses(url: str) -> Any:
    import openai  # noqa: PLC0415 - an extra

    client, items = openai.OpenAI(base_url=f"{url}/v1", api_key="x"), list[Any]()
    items.append({"role": "user", "content": QUESTION})
    tools: Any = [
        {"type": "function", "name": name, "parameters": SCHEMA, "strict": True} for name in ("look", "answer")
    ]
    for _ in range(3):
        got = client.responses.create(model="m", instructions="Boxes.", input=items, tools=tools)
        items += [item.model_dump(exclude_none=True) for item in got.output]
        for item in got.output:
            if item.type == "function_call":
                items.append({"type": "function_call_output", "call_id": item.call_id, "output": "look into box 2"})
    return items


def over_messages(url: str) -> Any:
    import anthropic  # noqa: PLC0415 - an extra

    client, messages = anthropic.Anthropic(base_url=url, api_key="x"), list[Any]()
    messages.append({"role": "user", "content": QUESTION})
    tools: Any = [{"name": name, "input_schema": SCHEMA} for name in ("look", "answer")]
    for _ in range(3):
        got = client.messages.create(model="m", max_tokens=50, system="Boxes.", messages=messages, tools=tools)
        messages.append({"role": "assistant", "content": [block.model_dump() for block in got.content]})
        results = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "look into box 2"}
            for block in got.content
            if block.type == "tool_use"
        ]
        messages.append({"role": "user", "content": results})
    return messages


AGENTS = {"openai-chat": over_chat, "openai-responses": over_responses, "anthropic-messages": over_messages}
