"""The endpoint over real HTTP: what an agent sees is what is recorded."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("anthropic", reason="needs the extra 'serve'")
pytest.importorskip("starlette", reason="needs the extra 'serve'")

import openai

from internalize.records import Message
from internalize.serve.history import trajectories_of
from tests.served import Served

pytestmark = pytest.mark.server
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "look", "description": "Look into a box.", "parameters": {
        "type": "object", "properties": {"box": {"type": "string"}}, "required": ["box"]}}},
]  # fmt: skip
START = [{"role": "system", "content": "Boxes."}, {"role": "user", "content": "Which number is in box 3?"}]
LOOK = '<tool_call>\n{"name": "look", "arguments": {"box": "3"}}\n</tool_call>'


def loop(base_url: str, *, stream: bool = False, **more: Any) -> list[Any]:
    """A plain loop of somebody else's: its messages at the end."""
    client = openai.OpenAI(base_url=base_url, api_key="none", max_retries=0)
    messages: list[Any] = list(START)
    for _ in range(6):
        if stream:
            with client.chat.completions.stream(model="m", messages=messages, tools=TOOLS, **more) as events:
                for _ in events:
                    pass
                turn = events.get_final_completion().choices[0].message
        else:
            turn = client.chat.completions.create(model="m", messages=messages, tools=TOOLS, **more).choices[0].message
        messages.append(turn.model_dump(exclude_none=True, include={"role", "content", "tool_calls"}))
        if not turn.tool_calls:
            return messages
        for call in turn.tool_calls:
            box = json.loads(call.function.arguments)["box"]
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"Inside box {box}: 4"})
    raise AssertionError("it never ended")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1", "/episodes/one/v1"])
def test_a_plain_loop_is_recorded_as_it_was_seen(path: str, *, stream: bool) -> None:
    with Served([LOOK, "It is 4."]) as served:
        seen = loop(served.url + path, stream=stream)
    (episode,) = trajectories_of(served.calls)
    assert [step.text for step in episode.steps] == [LOOK, "It is 4."]
    assert episode.steps[0].token_ids == served.renderer.encode_text(LOOK)
    assert len(episode.steps[0].logprobs) == len(episode.steps[0].token_ids)
    assert episode.prompt[1] == Message(role="user", content="Which number is in box 3?")
    history = list(episode.context(2)[2:])
    assert [(m.role, m.text) for m in history] == [(m["role"], m.get("content") or "") for m in seen[2:]]
    assert history[0].tool_calls[0].id == seen[2]["tool_calls"][0]["id"]
    assert not any(step.left_out or step.shown for step in episode.steps)
    assert len({call.episode for call in served.calls}) == 1
    # What the policy read is what a training on the record renders.
    shown = [ids for _, ids in served.engine.prompts]
    assert shown == [served.renderer.context(episode.prompt, episode.steps[:n]).ids for n in range(2)]
