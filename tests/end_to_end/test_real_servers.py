"""Against servers that people run: what the probe finds, an answer, and episodes of `docs` over each."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("torch", reason="needs the extra 'train'")

from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import Config
from internalize.environments.docs.env import Docs
from internalize.errors import UserError
from internalize.experience.inject import Injector
from internalize.inference.capabilities import probe
from internalize.inference.client import EndpointClient
from internalize.inference.endpoints import Endpoints
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.server import ServerChat, ServerEngine
from internalize.inference.server_policy import ServerPolicy
from internalize.records import ChatRequest, Message, Sampling, Trajectory
from internalize.rollout.episode import Label
from internalize.rollout.record import rollout
from internalize.training.policy import LocalPolicy
from tests.real_servers import RealServer

pytestmark = pytest.mark.server

ASKED = (Message(role="user", content="What is the capital of France? One word."),)


def config_for(server: RealServer) -> Config:
    endpoint = {"base_url": server.base_url, "model": server.model, "timeout": 600, "concurrency": 2, "tries": 2}
    return Config.model_validate(
        {
            "model": {"endpoint": "real", "max_context": 700},
            "rollout": {"max_steps": 2, "max_action_tokens": 10},
            "endpoints": {"real": endpoint},
        }
    )


def client_to(server: RealServer) -> EndpointClient:
    return Endpoints(config_for(server)).client("real")


@pytest.fixture(scope="module")
def own() -> LocalPolicy:
    """The model that both servers serve: without the starter's adapter, and without a new one."""
    config = Config.model_validate({"model": {"adapter": "none"}, "distill": {"lora_r": 0}, "evaluate": {"drift": 0}})
    return LocalPolicy.of(config, check=False)


@pytest.fixture(scope="module")
def renderer(own: LocalPolicy) -> TemplateRenderer:
    return own.renderer


def episodes(server: RealServer, own: LocalPolicy, path: Path) -> tuple[ServerPolicy, list[Trajectory]]:
    """Two tasks of `docs`, played over the server."""
    config, env, starter = config_for(server), Docs(), own.starter.id
    served = asyncio.run(ServerPolicy.connect(client_to(server), config, own.renderer, starter, own, path.parent))
    who = served.agent(starter)
    assert who is not None
    tasks = env.tasks("dev")[:2]
    return served, asyncio.run(rollout(tasks, env, who, Injector(), Label("r", 0, 0, starter), path=path))


def test_transformers_serve_gives_text(transformers_serve: RealServer, own: LocalPolicy, tmp_path: Path) -> None:
    reply = asyncio.run(ServerChat(client_to(transformers_serve)).complete(ChatRequest(messages=ASKED, max_tokens=6)))
    assert reply.text.strip()
    assert reply.prompt_tokens > 10
    assert 1 <= reply.completion_tokens <= 6
    served, found = episodes(transformers_serve, own, tmp_path / "a.jsonl")
    assert not served.abilities.tokens
    assert not served.abilities.schemas  # it takes the field and ignores it
    assert len(found) == 2
    assert all(t.text_only and t.failure is None and t.steps for t in found)


def test_a_model_that_is_not_served_is_refused_in_one_sentence(transformers_serve: RealServer) -> None:
    other = EndpointClient(
        "real", EndpointConfig(base_url=transformers_serve.base_url, model="another/model", timeout=600)
    )
    with pytest.raises(UserError, match="another/model"):
        asyncio.run(ServerChat(other).complete(ChatRequest(messages=ASKED, max_tokens=1)))


def test_llama_cpp_gives_token_ids(
    llama_server: RealServer, own: LocalPolicy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    renderer = own.renderer
    found = asyncio.run(probe(client_to(llama_server)))
    assert (found.tokens, found.schemas, found.adapters) == ("llama.cpp", True, False)
    served, trajectories = episodes(llama_server, own, tmp_path / "a.jsonl")
    assert served.abilities.tokens == "llama.cpp"  # its tokenizer is that of the converted model
    assert "JSON schemas; log-probabilities differ by" in caplog.text
    for trajectory in trajectories:
        assert trajectory.failure is None
        assert not trajectory.text_only
        for step in trajectory.steps:
            assert len(step.logprobs) in (0, len(step.token_ids))
            assert (step.finish == "stop") == (step.token_ids[-1] in renderer.stop_ids)
            assert renderer.decode(step.token_ids) == step.text


def test_logprobs_of_llama_cpp_are_those_of_the_model_itself(llama_server: RealServer, own: LocalPolicy) -> None:
    """Raw, at temperature 1, whatever temperature sampled: compared with a forward pass of the converted weights."""
    renderer = own.renderer
    ids = renderer.context(ASKED, ()).ids
    sampling = Sampling(max_tokens=8, temperature=0.7)  # hotter samples hold halves of characters
    engine = ServerEngine(client_to(llama_server), renderer, "llama.cpp", sampling=sampling, max_context=600)
    found = asyncio.run(engine.generate(ids, conversation="c", seed=3))
    assert found.logprobs
    here = own.logprobs([*ids, *found.token_ids], len(ids))
    assert found.logprobs == pytest.approx(here, abs=0.25)  # its kernels round activations to 8 bits
