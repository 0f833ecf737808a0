"""A server acts for the policy: it is compared before it is believed, and a lost adapter is loaded again."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("peft", reason="a server is compared with the model here")

from internalize.config.schema import Config
from internalize.errors import UserError
from internalize.inference.server import ServerEngine
from internalize.records import Checkpoint
from internalize.training.checkpoint import save_checkpoint
from internalize.training.policy import LocalPolicy
from tests.adapter_server import AdapterServer
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.slow]
PROMPT = tiny_tokenizer().encode("search[json decoder] visit")


def policy_on(server: AdapterServer, *, key: str = "compute", rank: int = 4, **endpoint: Any) -> LocalPolicy:
    there = {"base_url": server.base_url, "model": "base", "timeout": 120, "tries": 2, **endpoint}
    config = Config.model_validate(
        {"endpoints": {"e": there}, "distill": {"lora_r": rank}, "model": {"max_context": 400}, key: {"endpoint": "e"}}
        if key == "compute"
        else {"endpoints": {"e": there}, "distill": {"lora_r": rank}, "model": {"max_context": 400, "endpoint": "e"}}
    )
    return LocalPolicy(config, tiny_model(), tiny_tokenizer())


def trained(policy: LocalPolicy, root: Path, step: float = 0.3) -> Checkpoint:
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data += step
    found = {"id": save_checkpoint(policy.model, root / f"{step}"), "path": f"{step}", "iteration": 1}
    return policy.starter.model_copy(update=found)


async def sampled(policy: LocalPolicy) -> tuple[list[float], list[float]]:
    """Log-probabilities of what the agent's engine samples: the server's, and those of the weights held here."""
    engine = policy.agent.engine  # type: ignore[attr-defined]
    assert isinstance(engine, ServerEngine)
    turn = await engine.generate(PROMPT, conversation="", seed=1)
    return list(turn.logprobs), policy.logprobs([*PROMPT, *turn.token_ids], len(PROMPT))


def test_a_server_with_the_same_weights_acts_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with AdapterServer() as server:
        policy = policy_on(server)
        asyncio.run(policy.load(policy.starter, tmp_path))
        there, here = asyncio.run(sampled(policy))
        assert server.adapters == {}, "the rehearsal's adapter is unloaded"
    assert there == pytest.approx(here, abs=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == []
    (told,) = [r.getMessage() for r in caplog.records if "log-probabilities differ by" in r.getMessage()]
    assert "loads adapters; log-probabilities differ by" in told
    assert ", with an adapter by " in told


def test_a_server_with_other_weights_is_refused_or_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with AdapterServer(seed=1) as server:
        policy = policy_on(server)
        with pytest.raises(
            UserError, match=r"endpoint 'e' serves other weights than model\.source: .* nats on average"
        ):
            asyncio.run(policy.load(policy.starter, tmp_path))
        acts = policy_on(server, key="model")
        asyncio.run(acts.load(acts.starter, tmp_path))
        assert isinstance(acts.agent.engine, ServerEngine)  # type: ignore[attr-defined]
    assert "serves other weights than model.source" in caplog.text


@pytest.mark.parametrize("with_resolver", [False, True])
def test_an_adapter_that_is_gone_is_loaded_again(tmp_path: Path, with_resolver: bool) -> None:  # noqa: FBT001
    folder = tmp_path / "adapters"
    folder.mkdir()
    options = {"adapters": str(folder)} if with_resolver else {}
    with AdapterServer(resolver=folder if with_resolver else None) as server:
        policy = policy_on(server, **options)
        first, second = trained(policy, tmp_path, 0.3), trained(policy, tmp_path, 0.2)

        async def play() -> None:
            for checkpoint in (first, second):
                await policy.load(checkpoint, tmp_path)
                there, here = await sampled(policy)
                assert there == pytest.approx(here, abs=1e-4)
            server.restart()
            again = [sampled(policy) for _ in range(3)]
            for there, here in await asyncio.gather(*again):
                assert there == pytest.approx(here, abs=1e-4)

        asyncio.run(play())
        assert server.loads[1:] == [first.id, second.id, second.id], "loaded again once, though three asked"
        assert list(server.adapters) == [second.id], "one at a time"
        assert not with_resolver or [p.name for p in folder.iterdir()] == [second.id]


def test_a_rank_above_the_servers_is_final_and_told_before_anything_is_trained(tmp_path: Path) -> None:
    with AdapterServer(max_rank=2) as server:
        policy = policy_on(server)
        before = policy.logprobs(PROMPT, 1)
        with pytest.raises(UserError, match=r"no adapter of rank 4 \(distill\.lora_r\).*greater than max_lora_rank 2"):
            asyncio.run(policy.load(policy.starter, tmp_path))
        assert sum("lora_path" in body and bool(body["lora_path"]) for body in server.requests) == 1, "not tried again"
        assert policy.logprobs(PROMPT, 1) == before, "the policy is as it was"
        full = policy_on(server, rank=0)  # all weights are trained: no adapter is rehearsed
        asyncio.run(full.load(full.starter, tmp_path))


@pytest.mark.parametrize("with_resolver", [False, True])
def test_workers_that_rehearse_at_the_same_time_do_not_meet(tmp_path: Path, with_resolver: bool) -> None:  # noqa: FBT001
    folder = tmp_path / "adapters"
    folder.mkdir()
    options = {"adapters": str(folder)} if with_resolver else {}
    with AdapterServer(resolver=folder if with_resolver else None) as server:
        policies = [policy_on(server, **options) for _ in range(3)]

        async def begin() -> None:
            await asyncio.gather(*(policy.load(policy.starter, tmp_path) for policy in policies))

        asyncio.run(begin())
        assert len(set(server.loads)) == len(server.loads) == 3, "each under a name of its own, loaded once"
        assert with_resolver or server.adapters == {}, "unloaded"
    assert [[*path.iterdir()] for path in tmp_path.iterdir()] == [[]]


def test_a_resolver_that_reads_another_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with AdapterServer(resolver=tmp_path / "a") as server:
        policy = policy_on(server, adapters=str(tmp_path / "b"))
        with pytest.raises(UserError, match=r"no adapter of rank 4 .*does not exist"):
            asyncio.run(policy.load(policy.starter, tmp_path))
        assert [*(tmp_path / "b").iterdir()] == []


def test_text_alone_is_not_where_but_what(tmp_path: Path) -> None:
    with AdapterServer() as server:
        server.extra["POST /v1/completions"] = lambda body: (404, {}, b'{"detail": "Not Found"}')
        policy = policy_on(server)
        with pytest.raises(UserError, match=r"compute\.endpoint = 'e' gives text alone"):
            asyncio.run(policy.load(policy.starter, tmp_path))
