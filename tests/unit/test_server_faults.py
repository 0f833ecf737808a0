"""A server that breaks in every way: nothing is lost, doubled or scored for it; limits hold; the key stays in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import RolloutConfig
from internalize.errors import ConfigError, ContextError, Incomplete, InfrastructureError, UserError
from internalize.experience.inject import Injector
from internalize.inference.agent import ChatAgent
from internalize.inference.client import EndpointClient, Refused, Usage
from internalize.inference.retries import Retries
from internalize.inference.server import ServerChat
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ChatRequest, Message, Trajectory
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.runs.store import read_jsonl
from tests.faulty_server import FAULTS, NO_ANSWER, FaultyServer
from tests.toy import Toy

pytestmark = pytest.mark.server

LABEL = Label("rollout", 1, 0, "c")
QUICK = Retries(first=0.002, longest=0.01)
MIXED = ("slow", *[kind for kind in NO_ANSWER if kind != "slow"] * 4)  # a slow one takes its whole time-out
SIZE = 20  # episodes of four steps
ASKED = ChatRequest(messages=(Message(role="user", content="Which number?"),))


def plays_well(messages: list[dict[str, Any]], schema: object = None) -> str:
    """Look into the box of the question three times, then answer what was inside: scores 1.0 on every task."""
    last = messages[-1]["content"]
    if last.startswith("Inside: ") and len(messages) > 6:
        return f"answer[{last.removeprefix('Inside: ')}]"
    return f"look[{messages[1]['content'].split()[-1].rstrip('?')}]"


def client_to(server: FaultyServer, **settings: Any) -> EndpointClient:
    config = {"timeout": 1.0, "tries": 6, "concurrency": 16} | settings
    return EndpointClient("e", EndpointConfig(base_url=server.base_url, model="m", **config), QUICK)


def agent(chat: ServerChat) -> ChatAgent:
    return ChatAgent(
        chat, TOOL_FORMATS["bracket"], RolloutConfig(max_steps=6), 4000, wave=chat.client.config.concurrency
    )


def play(env: Toy, who: ChatAgent, path: Path) -> list[Trajectory]:
    return asyncio.run(rollout(env.tasks("train"), env, who, Injector(), LABEL, path=path))


def complete(client: EndpointClient) -> str:
    return asyncio.run(ServerChat(client).complete(ASKED)).text


def test_faults_of_every_kind_lose_nothing_double_nothing_and_are_never_a_score(tmp_path: Path) -> None:
    path, env = tmp_path / "a.jsonl", Toy(size=SIZE)
    with FaultyServer(plays_well, share=0.75, seed=7, kinds=MIXED) as server:
        for _ in range(4):  # as a user would: again until it is done
            try:
                found = play(env, agent(ServerChat(client_to(server, tries=14))), path)
                break
            except Incomplete:
                continue
    assert server.faults.total() >= 200  # a thousand in a whole run: end_to_end/test_loop_over_faults.py
    assert set(server.faults) == set(NO_ANSWER)
    stored = read_jsonl(path, Trajectory)
    assert [t.id for t in stored] == [t.id for t in found]
    assert len({t.id for t in found}) == SIZE
    assert all(t.score in (1.0, None) for t in found)
    assert all((t.score is None) == (t.failure is not None) for t in found)
    assert all(t.text_only and len(t.steps) == 4 for t in found if t.failure is None)
    assert server.answered >= sum(len(t.steps) for t in found if t.failure is None)


def test_an_outage_is_resumed_without_paying_twice(tmp_path: Path) -> None:
    path, env = tmp_path / "a.jsonl", Toy(size=30)
    with FaultyServer(plays_well, share=0.9, kinds=("500", "dropped")) as server:
        with pytest.raises(Incomplete, match="episodes failed"):
            play(env, agent(ServerChat(client_to(server, tries=2))), path)
        before = {t.id for t in read_jsonl(path, Trajectory) if t.failure is None}
        server.share, answered = 0.0, server.answered
        found = play(env, agent(ServerChat(client_to(server))), path)
        assert len(found) == 30
        assert all(t.score == 1.0 for t in found)
        assert server.answered - answered == 4 * (30 - len(before))


def test_a_spent_budget_stops_the_run_and_keeps_what_was_paid_for(tmp_path: Path) -> None:
    path, env = tmp_path / "a.jsonl", Toy(size=40)
    with FaultyServer(plays_well) as server:
        client = client_to(server, max_tokens=3000, concurrency=4)
        with pytest.raises(Incomplete, match=r"endpoints\.e\.max_tokens of 3000 tokens is spent"):
            play(env, agent(ServerChat(client)), path)
        kept = read_jsonl(path, Trajectory)
        assert 0 < len(kept) < 40
        assert all(t.score == 1.0 for t in kept)
        assert 3000 <= client.usage.tokens < 3000 + 4 * 100  # those in flight when it was reached
        assert len(play(env, agent(ServerChat(client_to(server))), path)) == 40
        assert len(read_jsonl(path, Trajectory)) == 40


def test_cost_follows_the_prices_and_stops() -> None:
    with FaultyServer(lambda m, s: "x" * 40) as server:
        client = client_to(server, price_in=1e6, price_out=2e6, max_cost=100.0)
        complete(client)
        prompt, sampled = client.usage.prompt_tokens, client.usage.completion_tokens
        assert (sampled, client.usage.estimated) == (11, 0)
        assert client.usage.cost == pytest.approx(prompt + 2 * 11)
        with pytest.raises(Incomplete, match="max_cost"):
            [complete(client) for _ in range(9)]


def test_a_server_without_counts_is_estimated_and_that_is_said() -> None:
    with FaultyServer(lambda m, s: "x" * 400, usage=False) as server:
        client = client_to(server)
        assert complete(client)
    assert client.usage.estimated == 1
    assert 100 <= client.usage.completion_tokens <= 200  # 400 characters and the JSON around them
    assert "estimated for 1 answers" in client.usage.text


def test_never_more_at_once_than_allowed() -> None:
    async def many(chat: ServerChat) -> None:
        await asyncio.gather(*(chat.complete(ASKED) for _ in range(60)))

    with FaultyServer(lambda m, s: "x", share=0.3, kinds=("500", "429 retry-after"), delay=0.005) as server:
        asyncio.run(many(ServerChat(client_to(server, concurrency=5, tries=30))))
        assert server.most_at_once == 5


@pytest.mark.parametrize("kind", NO_ANSWER)
def test_each_fault_is_tried_again_and_named_in_the_end(kind: str) -> None:
    with FaultyServer(lambda m, s: "x", share=1.0, kinds=(kind,), limit=2) as server:
        assert complete(client_to(server)) == "x"
        assert server.faults[kind] == 2
        server.limit = None
        client = client_to(server, tries=3)
        with pytest.raises(InfrastructureError, match="3 tries failed, the last one with "):
            complete(client)
        assert (client.usage.requests, client.usage.answers) == (3, 0)


def test_wrong_ids_are_the_callers_to_see() -> None:
    with FaultyServer(lambda m, s: "take 0123456789ab", share=1.0, kinds=("wrong ids",)) as server:
        assert complete(client_to(server)) == "take deadbeef0000"
    assert FAULTS[-1] == "wrong ids"


@pytest.mark.parametrize(
    ("status", "words", "told"),
    [
        (400, "bad field", "refused a request to 'm' at .*HTTP 400.*bad field"),
        (402, "Insufficient Balance", "Insufficient Balance"),
        (404, "no model m", "no model m"),
        (401, "no", "check the key in the environment variable E_KEY"),
    ],
)
def test_a_refusal_is_one_sentence_at_once(status: int, words: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("E_KEY", "s3cret-value")
    with FaultyServer(lambda m, s: "x") as server:
        server._good = _always(status, words)  # type: ignore[method-assign]
        with pytest.raises(Refused, match=told) as raised:
            complete(client_to(server, key_env="E_KEY"))
        assert len(server.requests) == 1
    assert isinstance(raised.value, UserError)
    assert "\n" not in str(raised.value)


def _always(status: int, words: str) -> Callable[..., tuple[int, dict[str, str], bytes]]:
    return lambda *_: (status, {}, b'{"error": {"message": "%s"}}' % words.encode())


def test_a_prompt_that_leaves_no_room_from_the_start_is_no_score_of_zero(tmp_path: Path) -> None:
    words = "This model's maximum context length is 64 tokens"
    with FaultyServer(plays_well) as server:
        server._good = _always(400, words)  # type: ignore[method-assign]
        with pytest.raises(ContextError, match="too long for m"):
            complete(client_to(server))
        with pytest.raises(Incomplete, match=r"3 of 3 episodes failed \(the prompt alone leaves no room"):
            play(Toy(size=3), agent(ServerChat(client_to(server))), tmp_path / "a.jsonl")
    found = read_jsonl(tmp_path / "a.jsonl", Trajectory)
    assert [(t.termination, t.score) for t in found] == [("failed", None)] * 3


def test_the_key_is_in_no_record_message_repr_or_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    key = "sk-0123456789-do-not-show"
    monkeypatch.setenv("E_KEY", key)
    caplog.set_level(logging.DEBUG)
    with FaultyServer(plays_well, key=key, share=0.3, seed=3, kinds=NO_ANSWER) as server:
        client = client_to(server, key_env="E_KEY")
        play(Toy(), agent(ServerChat(client)), tmp_path / "a.jsonl")
        monkeypatch.setenv("E_KEY", key[::-1])  # the server tells the wrong key back
        server.share = 0.0
        with pytest.raises(UserError, match="E_KEY") as raised:
            complete(client_to(server, key_env="E_KEY"))
        server.extra["POST /v1/chat/completions"] = lambda _: (400, {}, key[::-1].encode())
        server.key = ""
        with pytest.raises(UserError) as told_back:
            complete(client_to(server, key_env="E_KEY"))
    assert all(error.__suppress_context__ and error.__cause__ is None for error in (raised.value, told_back.value))
    stored = (tmp_path / "a.jsonl").read_text()
    seen = f"{client!r} {client.__dict__} {client.usage} {raised.value} {told_back.value} {stored}"
    assert key not in seen + caplog.text
    assert key[::-1] not in seen + caplog.text
    assert "***" in str(told_back.value)


def test_a_key_that_is_missing_or_in_the_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("E_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "meant-for-somebody-else")
    with pytest.raises(UserError, match="variable E_KEY is not set"):
        EndpointClient("e", EndpointConfig(base_url="http://127.0.0.1:1/v1", model="m", key_env="E_KEY"))
    with pytest.raises(ConfigError, match="holds a user or key"):
        EndpointClient("e", EndpointConfig(base_url="http://me:pass@127.0.0.1:1/v1", model="m"))
    with FaultyServer(lambda m, s: "x", key="none") as server:
        assert complete(client_to(server)) == "x"  # the other's key was not sent


def test_a_server_without_schemas_is_asked_without_from_then_on() -> None:
    schema = {"type": "object"}

    async def twice(chat: ServerChat) -> list[str]:
        return [(await chat.complete(ASKED.model_copy(update={"response_schema": schema}))).text for _ in range(2)]

    with FaultyServer(lambda m, s: "plain" if s is None else "obeyed", schemas=False) as server:
        assert asyncio.run(twice(ServerChat(client_to(server)))) == ["plain", "plain"]
        assert ["response_format" in body for body in server.requests] == [True, False, False]
        server.schemas = True
        assert asyncio.run(twice(ServerChat(client_to(server)))) == ["obeyed", "obeyed"]


def test_one_client_serves_one_event_loop_after_another() -> None:
    with FaultyServer(lambda m, s: "x") as server:
        client = client_to(server)
        assert [complete(client) for _ in range(3)] == ["x", "x", "x"]
        assert client.usage == Usage(
            requests=3, answers=3, prompt_tokens=client.usage.prompt_tokens, completion_tokens=3, cost=0.0
        )
