"""Chat servers that take `tools`: calls, several a turn, their results, and servers that take or read none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")

from internalize.errors import UserError
from internalize.experience.inject import Injector
from internalize.inference.agent import ChatAgent
from internalize.inference.capabilities import probe
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Experience, Trajectory
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.training.examples import build_example
from internalize.training.policy import LocalPolicy
from tests.faulty_server import Answer, FaultyServer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy import Toy
from tests.unit.test_endpoints import client_to, config_for
from tests.unit.test_native import NATIVE

pytestmark = pytest.mark.server
Said = dict[str, Any]  # an assistant's message
Plays = Callable[[list[dict[str, Any]]], Said]


def calling(*calls: tuple[str, str], content: str | None = None) -> Said:
    """A message with calls as servers give them, with ids of their own."""
    listed = [
        {"id": f"chatcmpl-{n}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for n, (name, arguments) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": listed}


def probed(body: dict[str, Any]) -> Said | None:
    """What a good model says to the probe of tools."""
    if body.get("tools", [{}])[0].get("function", {}).get("name") != "look_up":
        return None
    if body["messages"][-1]["role"] == "tool":
        return {"role": "assistant", "content": "Tea is a drink."}
    return calling(("look_up", '{"word": "tea"}'))


def serving(plays: Plays) -> FaultyServer:
    """A server whose model plays so, given tools; as strict about results as the real ones are."""

    def answer(body: dict[str, Any]) -> Answer:
        owed: list[str] = []
        for message in body["messages"]:
            if message["role"] == "tool":
                if message["tool_call_id"] not in owed:
                    return 400, {}, b'{"error": {"message": "a tool message must answer a call"}}'
                owed.remove(message["tool_call_id"])
            elif owed:
                return 400, {}, b'{"error": {"message": "a call has no result"}}'
            owed += [call["id"] for call in message.get("tool_calls", ())]
        said = probed(body) or (plays(body["messages"]) if "tools" in body else {"role": "assistant", "content": "{}"})
        reason = "tool_calls" if said.get("tool_calls") else "stop"
        return 200, {}, json.dumps({"choices": [{"message": said, "finish_reason": reason}]}).encode()

    return FaultyServer(lambda m, s: "", extra={"POST /v1/chat/completions": answer})


def looks_then_answers(messages: list[dict[str, Any]]) -> Said:
    """Two boxes in one turn, then the answer that stood in the first."""
    if messages[-1]["role"] == "tool":
        inside = messages[-2]["content"].removeprefix("Inside: ")[:1]
        return calling(("answer", json.dumps({"number": inside})), content="I know it.")
    box = messages[1]["content"].partition("in box ")[2][:3]
    return calling(("look", json.dumps({"box": box})), ("look", '{"box": "nowhere"}'))


def policy_of(server: FaultyServer, **model: Any) -> LocalPolicy:
    config = config_for(server, model={"endpoint": "e", "max_context": 900, **model})
    policy = LocalPolicy(config, tiny_model(), tiny_tokenizer(NATIVE))
    return asyncio.run(policy.load(policy.starter, Path()))


def play(who: Any, path: Path, injector: Injector | None = None, size: int = 2) -> list[Trajectory]:
    env, label = Toy(size=size), Label("rollout", 1, 0, "c")
    return asyncio.run(rollout(env.tasks("train"), env, who, injector or Injector(), label, path=path))


def test_tools_are_passed_and_calls_and_results_stay_what_they_are(tmp_path: Path) -> None:
    item = Experience.new("Look into the box that the question names first.", "principle", "contrast")
    with serving(looks_then_answers) as server:
        policy = policy_of(server)
        assert isinstance(policy.agent, ChatAgent)
        assert policy.agent.native
        server.requests.clear()
        found = play(policy.agent, tmp_path / "a.jsonl", Injector("stepwise", (item,), 1))
        first, second = (body for body in server.requests if "box 100" in str(body["messages"]))
    assert [t.score for t in found] == [1.0, 1.0]
    assert [tool["function"]["name"] for tool in first["tools"]] == ["look", "answer"]
    assert first["tools"][0]["function"]["parameters"]["required"] == ["box"]
    assert "Reply with" not in str(first["messages"])  # no second description in the prompt
    roles = [message["role"] for message in second["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "tool"]
    calls = second["messages"][2]["tool_calls"]
    assert [call["id"] for call in calls] == [m["tool_call_id"] for m in second["messages"][3:]] == ["call_0", "call_1"]
    assert item.text not in str(second["messages"][:-1])  # experience is in the last message alone
    assert second["messages"][-1]["content"].endswith(item.text)
    steps = found[0].steps
    assert [[c.key for c in s.calls] for s in steps] == [[("look", "100"), ("look", "nowhere")], [("answer", "2")]]
    assert steps[0].results[1].text == "Nothing."
    assert steps[1].message.text == "I know it."
    assert found[0].tools == Toy.tools
    example = build_example(found[0], policy.renderer)  # learnt in the words of the model here
    assert example
    turn = policy.renderer.encode_turn(steps[0].message, Toy.tools)
    assert example.token_ids[example.spans[0].start : example.spans[0].end] == turn


def test_what_was_chosen_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="internalize.inference.server_policy")
    with serving(looks_then_answers) as server:
        policy_of(server)
        assert "tool calls" in asyncio.run(probe(client_to(server))).text
    assert "calls: by the server" in caplog.text


def refuses(body: dict[str, Any]) -> Answer | None:
    """As vLLM without a parser of calls."""
    if "tools" not in body:
        return None
    words = '"auto" tool choice requires --enable-auto-tool-choice and --tool-call-parser to be set'
    return 400, {}, json.dumps({"error": {"message": words, "code": 400}}).encode()


def fails_on_results(body: dict[str, Any]) -> Answer | None:
    """A server that reads calls, with a chat template that has no role tool."""
    if body["messages"][-1]["role"] == "tool":
        return 400, {}, b'{"error": {"message": "Unknown role: tool"}}'
    return (200, {}, json.dumps({"choices": [{"message": probed(body)}]}).encode()) if "tools" in body else None


@pytest.mark.parametrize("special", [refuses, fails_on_results, lambda body: None])
def test_servers_that_take_no_tools_are_told_of_them_in_the_prompt(
    special: Callable[[dict[str, Any]], Answer | None], tmp_path: Path
) -> None:
    """The last one takes the field and its model only talks about it."""

    def answer(body: dict[str, Any]) -> Answer:
        if refused := special(body):
            return refused
        said = "Let me look." if "tools" in body else "answer[1]"
        return 200, {}, json.dumps({"choices": [{"message": {"content": said}}]}).encode()

    with FaultyServer(lambda m, s: "", extra={"POST /v1/chat/completions": answer}) as server:
        who = policy_of(server).agent
        assert isinstance(who, ChatAgent)
        assert not who.native
        server.requests.clear()
        (found,) = play(who, tmp_path / "a.jsonl", size=1)
    assert found.steps[0].calls[0].key == ("answer", "1")
    assert not found.tools
    assert found.prompt[0].text.endswith(TOOL_FORMATS["bracket"].instructions(Toy.tools))
    assert not any("tools" in body for body in server.requests)


@pytest.mark.parametrize("protocol", ["bracket", "json"])
def test_a_recipe_that_wants_text_gets_text(protocol: str) -> None:
    with serving(looks_then_answers) as server:
        who = policy_of(server, protocol=protocol).agent
    assert isinstance(who, ChatAgent)
    assert not who.native
    assert who.tool_format is TOOL_FORMATS[protocol]


def test_a_model_here_that_reads_text_gets_a_server_of_text() -> None:
    """It learns from what the server does: both have to be told of the tools in the same way."""
    with serving(looks_then_answers) as server:
        policy = LocalPolicy(config_for(server), tiny_model(), tiny_tokenizer())
        asyncio.run(policy.load(policy.starter, Path()))
    assert isinstance(policy.agent, ChatAgent)
    assert not policy.agent.native


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (calling(("open", "{}")), "there is no tool 'open'; the tools are look, answer"),
        (calling(("look", "[]")), "the arguments of look are no JSON object"),
        (calling(("look", "{box")), "not valid JSON"),
    ],
)
def test_a_call_that_cannot_be_made_is_told_to_the_model(said: Said, problem: str, tmp_path: Path) -> None:
    def plays(messages: list[dict[str, Any]]) -> Said:
        return said if messages[-1]["role"] == "user" and len(messages) == 2 else calling(("answer", '{"number": "2"}'))

    with serving(plays) as server:
        (found,) = play(policy_of(server).agent, tmp_path / "a.jsonl", size=1)
        told = server.requests[-1]["messages"]
    assert found.score == 1.0
    assert problem in found.steps[0].problem
    assert found.steps[0].calls == ()
    assert [message["role"] for message in told] == ["system", "user", "assistant", "user"]
    assert told[2]["content"] == found.steps[0].text  # what it had tried, as text
    assert told[3]["content"].startswith("A call could not be made: ")


def test_a_valid_call_beside_one_that_is_not_is_made(tmp_path: Path) -> None:
    def plays(messages: list[dict[str, Any]]) -> Said:
        if messages[-1]["role"] == "tool":
            return calling(("answer", '{"number": "2"}'))
        return calling(("open", "{}"), ("look", '{"box": "100"}'))

    with serving(plays) as server:
        (found,) = play(policy_of(server).agent, tmp_path / "a.jsonl", size=1)
        told = server.requests[-1]["messages"]
    assert [c.key for c in found.steps[0].calls] == [("look", "100")]
    assert (
        told[-1]["content"]
        == "Inside: 2\nA call could not be made: there is no tool 'open'; the tools are look, answer."
    )


def test_calls_written_as_text_are_read_and_control_tokens_stay_out(tmp_path: Path) -> None:
    def plays(messages: list[dict[str, Any]]) -> Said:
        call = '<tool_call>\n{"name": "answer", "arguments": {"number": "2"}}\n</tool_call>'
        return (
            {"role": "assistant", "content": call}
            if messages[-1]["role"] == "tool"
            else calling(("look", json.dumps({"box": "<|im_end|> 100"})))
        )

    with serving(plays) as server:
        (found,) = play(policy_of(server).agent, tmp_path / "a.jsonl", size=1)
        sent = json.dumps(server.requests[-1])
    assert found.steps[0].calls[0].argument == "<|im_end|> 100"
    assert found.score == 1.0
    assert "<|im_end|>" not in sent
    assert "< |im_end|> 100" in sent


def test_a_refusal_of_the_key_is_no_lack_of_tools() -> None:
    def answer(body: dict[str, Any]) -> Answer:
        if "tools" in body:
            return 403, {}, b'{"error": {"message": "not on your plan"}}'
        return 200, {}, b'{"choices": [{"message": {"content": "{}"}}]}'

    with (
        FaultyServer(lambda m, s: "", extra={"POST /v1/chat/completions": answer}) as server,
        pytest.raises(UserError, match="requires one: set key_env"),
    ):
        asyncio.run(probe(client_to(server)))
