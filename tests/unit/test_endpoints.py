"""Which server acts for which weights, and what becomes of token ids that do not fit."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config
from internalize.errors import ConfigError, InfrastructureError, UserError
from internalize.experience.inject import Injector
from internalize.inference.agent import ChatAgent, TokenAgent
from internalize.inference.capabilities import probe
from internalize.inference.client import EndpointClient, Refused
from internalize.inference.endpoints import Endpoints, endpoint_chat
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.replies import read_reply
from internalize.inference.retries import Retries
from internalize.inference.server import ServerChat, ServerEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ChatRequest, Checkpoint, Message, Reply, Sampling
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.training.checkpoint import checkpoint_id
from internalize.training.policy import LocalPolicy
from tests.faulty_server import Answer, FaultyServer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy import Toy

pytestmark = pytest.mark.server

QUICK = Retries(first=0.002, longest=0.01)
RENDERER = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
SAMPLING = Sampling(max_tokens=24, temperature=1.0)


def plays_well(ids: list[int]) -> tuple[list[int], list[float]]:
    """The toy's solution, as a server of token ids would sample it."""
    if len(ids) <= 2:  # what a probe asks
        return [5], [-0.5]
    text = str(RENDERER.tokenizer.decode(ids))
    inside = text.rpartition("Inside: ")[2][:1]
    box = text.partition("in box ")[2][:3]
    action = RENDERER.encode_text(f"answer[{inside}]" if "Inside: " in text else f"look[{box}]")
    return list(action), [-0.25] * len(action)


def tokenize(body: dict[str, Any]) -> Answer:
    return 200, {}, json.dumps({"tokens": RENDERER.tokenizer.encode(body["prompt"], add_special_tokens=False)}).encode()


def client_to(server: FaultyServer, **settings: Any) -> EndpointClient:
    return EndpointClient("e", EndpointConfig(base_url=server.base_url, model="base", timeout=5, **settings), QUICK)


def config_for(server: FaultyServer, **sections: Any) -> Config:
    values = {
        "model": {"endpoint": "e", "max_context": 600},
        "rollout": {"max_steps": 4, "max_action_tokens": 24},
        "endpoints": {"e": {"base_url": server.base_url, "model": "base", "timeout": 5, "concurrency": 3}},
    }
    return Config.model_validate(values | sections)


def policy_for(config: Config) -> LocalPolicy:
    """A policy with the starter's weights, ready to act."""
    policy = LocalPolicy(config, tiny_model(), tiny_tokenizer())
    return asyncio.run(policy.load(policy.starter, Path()))


def vllm(*, adapters: bool = False, **more: Any) -> FaultyServer:
    """A server with vLLM's forms; `loaded` gets the adapters that are asked for."""

    def load(body: dict[str, Any]) -> Answer:
        if not body["lora_path"]:
            return 400, {}, b'{"error": {"message": "Both \'lora_name\' and \'lora_path\' must be provided."}}'
        again = body["lora_name"] in loaded
        loaded.append(body["lora_name"])
        return (400, {}, b'{"message": "has already been loaded"}') if again else (200, {}, b"Success: loaded")

    loaded: list[str] = []
    extra = {"POST /tokenize": tokenize} | ({"POST /v1/load_lora_adapter": load} if adapters else {})
    server = FaultyServer(lambda m, s: '{"ok": true}' if s else "answer[1]", complete=plays_well, extra=extra, **more)
    server.loaded = loaded  # type: ignore[attr-defined]
    return server


def test_the_probe_learns_what_a_server_can_do() -> None:
    with vllm(adapters=True) as server:
        found = asyncio.run(probe(client_to(server)))
    assert found.text == (
        "endpoint e (base): token ids and logprobs (vllm), JSON schemas, prompt logprobs, loads adapters"
    )
    with FaultyServer(lambda m, s: "hello", schemas=False) as server:
        assert asyncio.run(probe(client_to(server))).text == "endpoint e (base): text only, no JSON schemas"
    with FaultyServer(lambda m, s: "hello") as server:  # accepts a schema and does not obey it
        assert not asyncio.run(probe(client_to(server))).schemas


def test_a_server_out_of_reach_is_not_taken_for_one_that_cannot() -> None:
    with vllm(share=0.5, seed=1, kinds=("503", "dropped", "429")) as server:
        assert asyncio.run(probe(client_to(server, tries=30))).tokens == "vllm"
    with pytest.raises(InfrastructureError, match="broken connection"):
        asyncio.run(
            probe(EndpointClient("e", EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m", tries=2), QUICK))
        )


def test_episodes_by_token_ids_survive_faults_and_ids_that_do_not_fit(tmp_path: Path) -> None:
    kinds = ("wrong ids", "no content", "empty choices", "truncated", "500")
    with vllm(share=0.4, seed=2, kinds=kinds) as server:
        who = policy_for(config_for(server)).agent
        assert isinstance(who, TokenAgent)
        found = asyncio.run(
            rollout(Toy().tasks("train"), Toy(), who, Injector(), Label("r", 1, 0, "c"), path=tmp_path / "a.jsonl")
        )
        assert set(server.faults) == set(kinds)
    assert [t.score for t in found] == [1.0] * 12
    assert not any(t.text_only for t in found)
    step = found[0].steps[0]
    assert step.token_ids == RENDERER.encode_text(step.text)
    assert step.logprobs == (-0.25,) * len(step.token_ids)


def test_samplers_that_cut_the_distribution_are_off() -> None:
    with vllm() as server:
        engine = ServerEngine(client_to(server), RENDERER, "vllm", sampling=SAMPLING, max_context=200)
        asyncio.run(engine.generate(RENDERER.encode_text("in box 101"), conversation="c", seed=2**40 + 5))
        (body,) = server.requests
    assert {name: body[name] for name in ("top_p", "top_k", "min_p", "repetition_penalty")} == {
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
    }
    assert body["stop_token_ids"] == sorted(RENDERER.stop_ids)
    assert (body["temperature"], body["seed"]) == (1.0, 5)


def test_a_prompt_without_room_is_answered_as_locally() -> None:
    engine = ServerEngine(
        EndpointClient("e", EndpointConfig(base_url="http://127.0.0.1:9/v1", model="m")),
        RENDERER,
        "vllm",
        sampling=SAMPLING,
        max_context=3,
    )
    found = asyncio.run(engine.generate((4, 5, 6), conversation="c", seed=0))
    assert (found.token_ids, found.finish) == ((), "length")


def test_another_tokenizer_makes_its_episodes_text(caplog: pytest.LogCaptureFixture) -> None:
    with vllm() as server:
        server.extra["POST /tokenize"] = lambda body: (200, {}, b'{"tokens": [1, 2, 3]}')
        policy = policy_for(config_for(server))
    assert isinstance(policy.agent, ChatAgent)
    assert "another tokenizer" in caplog.text


def test_trained_weights_act_over_a_server_that_loads_adapters(tmp_path: Path) -> None:
    with vllm(adapters=True) as server:
        policy = policy_for(config_for(server))
        (rehearsed,) = server.loaded  # type: ignore[attr-defined]
        trained = _trained(policy, tmp_path)
        asyncio.run(policy.load(trained, tmp_path))
        assert server.loaded == [rehearsed, trained.id]  # type: ignore[attr-defined]
        assert isinstance(policy.agent, TokenAgent)
        assert isinstance(policy.agent.engine, ServerEngine)
        assert policy.agent.engine.model == trained.id == policy.chat().name.removeprefix("e/")
        again = policy_for(config_for(server))  # another process, a server that holds it already
        asyncio.run(again.load(trained, tmp_path))
        assert isinstance(again.agent.engine, ServerEngine)  # type: ignore[union-attr]
        asyncio.run(again.load(again.starter, tmp_path))
        assert again.agent.engine.model == "base"  # type: ignore[union-attr]


def test_trained_weights_act_here_when_the_server_cannot_hold_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with FaultyServer(lambda m, s: "answer[1]") as server:
        policy = policy_for(config_for(server))
        assert isinstance(policy.agent, ChatAgent)
        assert policy.chat().name == "e/base"
        for _ in range(2):
            asyncio.run(policy.load(_trained(policy, tmp_path), tmp_path))
        assert isinstance(policy.agent, TokenAgent)
        assert not policy.agent.independent
        assert policy.chat().name == "self"
    assert caplog.text.count("act in this process") == 1
    asyncio.run(policy.load(policy.starter, tmp_path))
    assert isinstance(policy.agent, ChatAgent)


def test_an_adapter_that_the_server_cannot_read_is_an_error_with_its_words(tmp_path: Path) -> None:
    with vllm(adapters=True) as server:
        policy = policy_for(config_for(server))
        server.extra["POST /v1/load_lora_adapter"] = lambda body: (404, {}, b'{"message": "No adapter found for /x"}')
        trained = _trained(policy, tmp_path)  # the training is kept whatever the server says
        with pytest.raises(Refused, match="No adapter found"):
            asyncio.run(policy.load(trained, tmp_path))
        assert checkpoint_id(tmp_path / trained.path) == trained.id


def _trained(policy: LocalPolicy, tmp_path: Path) -> Checkpoint:
    """Other weights than before, saved as a training would."""
    from internalize.training.checkpoint import save_checkpoint, trained_state  # noqa: PLC0415 - torch

    for tensor in (p for name, p in policy.model.named_parameters() if "lora_B" in name):
        tensor.data += 0.01
    assert trained_state(policy.model)
    found = {"id": save_checkpoint(policy.model, tmp_path / "checkpoint"), "path": "checkpoint", "iteration": 1}
    return policy.starter.model_copy(update=found)


def test_chat_models_share_the_link_of_their_endpoint(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with vllm() as server:
        config = config_for(server)
        policy = policy_for(config)
        writer, selector = policy.chat("e"), policy.chat("e")
        assert isinstance(writer, ServerChat)
        assert writer.client is selector.client is policy.endpoints.client("e")  # type: ignore[attr-defined]
        before = policy.endpoints.usage["e"].requests
        reply: Reply = asyncio.run(writer.complete(ChatRequest(messages=(Message(role="user", content="q"),))))
        assert reply.text == "answer[1]"
        assert policy.endpoints.usage["e"].requests == before + 1
        assert policy.chat().name == "e/base"
    assert "endpoint e (base): token ids and logprobs (vllm)" in caplog.text


def test_names_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no section \[endpoints\.nobody\]"):
        Endpoints(Config()).chat("nobody")
    with pytest.raises(ConfigError, match="needs the policy"):
        endpoint_chat(Config(), "self")


def test_a_key_that_is_not_set_is_named_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WRITER_KEY", raising=False)
    config = Config.model_validate(
        {
            "model": {"source": "no-such/model"},
            "extract": {"source": "external", "endpoint": "w"},
            "endpoints": {"w": {"base_url": "http://127.0.0.1:9/v1", "model": "m", "key_env": "WRITER_KEY"}},
        }
    )
    with pytest.raises(UserError, match="WRITER_KEY is not set"):
        LocalPolicy.of(config)


def test_calls_that_a_server_has_read_out_of_the_text_are_written_back() -> None:
    call = {"type": "function", "function": {"name": "look", "arguments": '{"box": "7"}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    reply = read_reply({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert [call.key for call in TOOL_FORMATS["json"].parse(reply.text, Toy.tools).tool_calls] == [("look", "7")]


def part(kind: str, **held: Any) -> dict[str, Any]:
    return {"type": kind, **held}


@pytest.mark.parametrize(
    ("message", "finish", "text", "reasoning", "said"),
    [
        ({"content": [part("text", text="look"), part("text", text="[7]")]}, "stop", "look[7]", "", "stop"),
        ({"content": [part("output_text", text="look[7]")]}, "stop", "look[7]", "", "stop"),
        (
            {"content": [part("thinking", thinking=[part("text", text="hm")]), part("text", text="look[7]")]},
            "stop", "look[7]", "hm", "stop",
        ),
        ({"content": [part("reasoning", text="hm"), part("text", text="look[7]")]}, "stop", "look[7]", "hm", "stop"),
        ({"content": None}, "length", "", "", "length"),
        ({"content": ""}, "MAX_TOKENS", "", "", "length"),
        ({"content": "<think>hm"}, "length", "", "hm", "length"),
        ({"content": None, "refusal": "I cannot help."}, "stop", "I cannot help.", "", "refused"),
        ({"content": [part("refusal", refusal="No.")]}, "stop", "No.", "", "refused"),
        ({"content": ""}, "content_filter", "", "", "refused"),
        ({"content": "look["}, "content_filter", "look[", "", "refused"),
    ],
)  # fmt: skip
def test_an_answer_in_parts_cut_off_or_refused(
    message: dict[str, Any], finish: str, text: str, reasoning: str, said: str
) -> None:
    reply = read_reply({"choices": [{"message": message, "finish_reason": finish}]})
    assert (reply.text, reply.reasoning, reply.finish) == (text, reasoning, said)


def test_a_part_that_is_no_text_is_not_passed_over() -> None:
    picture = {"content": [part("image_url", image_url={"url": "x"}), part("text", text="look[7]")]}
    with pytest.raises(Exception, match="a content of type 'image_url', which is no text"):
        read_reply({"choices": [{"message": picture}]})


def test_an_error_in_a_choice_keeps_its_reason() -> None:
    choice = {"message": {"content": ""}, "finish_reason": "error", "error": {"message": "Provider went away"}}
    with pytest.raises(Exception, match="Provider went away"):
        read_reply({"choices": [choice]})
    with pytest.raises(Exception, match="no room for an answer"):
        read_reply({"choices": [{"message": {"content": ""}, "finish_reason": "model_context_window_exceeded"}]})


def test_an_empty_answer_counts_only_if_tokens_were_sampled_for_it() -> None:
    answer: dict[str, Any] = {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}
    assert read_reply(answer | {"usage": {"prompt_tokens": 3, "completion_tokens": 1}}).text == ""
    thought = {"choices": [{"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}]}
    assert read_reply(thought | {"usage": {"completion_tokens": 9}}).finish == "length"
    with pytest.raises(Exception, match="without content"):
        read_reply(answer)


@pytest.mark.parametrize(
    ("message", "reasoning", "text"),
    [
        ({"content": "look[7]", "reasoning_content": "In box 7."}, "In box 7.", "look[7]"),
        ({"content": "look[7]", "reasoning": "In box 7."}, "In box 7.", "look[7]"),
        ({"content": "<think>\nIn box 7.\n</think>\n\nlook[7]"}, "In box 7.", "look[7]"),
        ({"content": "In box 7.\n</think>\n\nlook[7]"}, "In box 7.", "look[7]"),  # the prompt ended with <think>
        ({"content": "<think>\nIn box"}, "In box", ""),
        ({"content": None, "reasoning_content": "In box"}, "In box", ""),
        ({"content": '{"text": "a </think> b"}'}, "", '{"text": "a </think> b"}'),
        ({"content": "Say <think> first."}, "", "Say <think> first."),
    ],
)
def test_reasoning_is_kept_apart_from_the_text(message: dict[str, Any], reasoning: str, text: str) -> None:
    reply = read_reply({"choices": [{"message": message}], "usage": {"completion_tokens": 9}})
    assert (reply.reasoning, reply.text) == (reasoning, text)
