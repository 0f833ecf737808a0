"""A real vLLM acts for the policy: the loop over it, a restart, the resolver's folder, weights and ranks that differ.

It starts three times, a minute or two each, so it has a target of its own: make test-vllm.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("peft", reason="needs the learning half")

import psutil
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.errors import UserError
from internalize.records import Checkpoint, Trajectory
from internalize.runs.store import read_jsonl
from internalize.training.checkpoint import save_checkpoint
from internalize.training.policy import LocalPolicy
from tests.command import Call
from tests.real_servers import STARTS_WITHIN, VLLM, free_port, vllm_server
from tests.tiny import tiny_tokenizer

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.server,
    pytest.mark.skipif(not VLLM.exists(), reason="vLLM is not installed: make test-vllm"),
]
RECIPE = """
iterations = 2
model = { source = "MODEL", adapter = "none", max_context = 600 }
env = { name = "toy" }
rollout = { tasks = 4, attempts = 2, max_steps = 3, max_action_tokens = 8 }
distill = { tasks = 6, epochs = 2, lora_r = 4, lr = 5e-2, batch = 2, divergence = "sft", filter = "none" }
evaluate = { tasks = 4, final_tasks = 2, drift = 0, resamples = 100 }
compute = { endpoint = "v" }
endpoints.v = { base_url = "URL", model = "MODEL", concurrency = 4, timeout = 300, tries = 4 ADAPTERS }
"""


def save_model(folder: Path, seed: int) -> Path:
    """Random weights in the shape that vLLM's attention on CPUs takes: heads of 32."""
    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, max_position_embeddings=2048, initializer_range=0.2, bos_token_id=1,
        eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def prepared(tmp_path: Path, **server: Any) -> Iterator[tuple[Path, int]]:
    model, port = save_model(tmp_path / "model", 0), free_port()
    adapters = f', adapters = "{server["resolver"]}"' if server.get("resolver") else ""
    text = RECIPE.replace("MODEL", str(model)).replace("ADAPTERS", adapters)
    (tmp_path / "recipe.toml").write_text(text.replace("URL", f"http://127.0.0.1:{port}/v1"))
    with vllm_server(model, port, **server):
        yield model, port


def trained(policy: LocalPolicy, root: Path) -> Checkpoint:
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(3))
    found = {"id": save_checkpoint(policy.model, root / "c1"), "path": "c1", "iteration": 1}
    return policy.starter.model_copy(update=found)


async def difference(policy: LocalPolicy) -> float:
    """The largest between the server's log-probabilities and those of the weights held here."""
    prompt = tiny_tokenizer().encode("search[json decoder] visit")
    turn = await policy.agent.engine.generate(prompt, conversation="", seed=1)  # type: ignore[attr-defined]
    here = policy.logprobs([*prompt, *turn.token_ids], len(prompt))
    return max(abs(a - b) for a, b in zip(turn.logprobs, here, strict=True))


def config_of(tmp_path: Path, *changes: str) -> Config:
    return load_config(tmp_path / "recipe.toml", changes)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", ""))


def require_exact(run: Path, config: Config) -> None:
    """Every step has ids and log-probabilities, which are those of the checkpoint that its record names."""
    policy, most = LocalPolicy.of(config, check=False), 0.0
    played = [("rollouts.jsonl", 1, 0), ("rollouts.jsonl", 2, 1), ("episodes-dev-internalized-2.jsonl", 2, 2)]
    for name, k, updates in played:
        folder = run / f"iter-{updates}" / "checkpoint" if updates else None
        policy.restore(folder)
        for trajectory in read_jsonl(run / f"iter-{k}" / name, Trajectory):
            context = policy.renderer.context(trajectory.prompt, (), "").ids
            step = trajectory.steps[0]
            here = policy.logprobs([*context, *step.token_ids], len(context))
            most = max(most, *(abs(a - b) for a, b in zip(step.logprobs, here, strict=True)))
    assert most < 1e-3, most


def test_the_loop_over_load_requests_and_a_restart(tmp_path: Path, call: Call) -> None:
    with prepared(tmp_path) as (model, port):
        ended = call("run", "recipe.toml", "--out", "run")
        assert ended.code == 0, ended.err
        assert "loads adapters; log-probabilities differ by" in ended.err
        config = config_of(tmp_path)
        require_exact(tmp_path / "run", config)
        policy = LocalPolicy.of(config, check=False)
        checkpoint = trained(policy, tmp_path)
        asyncio.run(policy.load(checkpoint, tmp_path))
        assert asyncio.run(difference(policy)) < 1e-3
        other = LocalPolicy.of(config_of(tmp_path, "distill.lora_r=16"), check=False)
        with pytest.raises(UserError, match=r"no adapter of rank 16 .* greater than max_lora_rank 8"):
            asyncio.run(other.load(other.starter, tmp_path))
        save_model(tmp_path / "other", 1)
        elsewhere = f"model.source={json.dumps(str(tmp_path / 'other'))}"
        wrong = LocalPolicy.of(config_of(tmp_path, elsewhere), check=False)
        with pytest.raises(UserError, match=r"serves other weights than model\.source"):
            asyncio.run(wrong.load(wrong.starter, tmp_path))
        assert asyncio.run(difference(policy)) < 1e-3, "neither refusal harmed the server"
    with vllm_server(model, port):  # it has forgotten the adapter
        assert asyncio.run(difference(policy)) < 1e-3


def test_the_loop_over_the_resolvers_folder(tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "adapters"
    folder.mkdir()
    with prepared(tmp_path, resolver=folder):
        ended = call("run", "recipe.toml", "--out", "run")
        assert ended.code == 0, ended.err
        require_exact(tmp_path / "run", config_of(tmp_path))
    assert len([*folder.iterdir()]) == 1


def test_the_run_starts_vllm_and_starts_it_again_when_it_is_killed(
    tmp_path: Path, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    model = save_model(tmp_path / "model", 0)
    text = RECIPE[: RECIPE.index("compute = ")].replace("MODEL", str(model))
    vllm = f'{{ python = "{VLLM}", options = ["--enforce-eager"], variables = {{ VLLM_CPU_KVCACHE_SPACE = "1" }} }}'
    (tmp_path / "recipe.toml").write_text(f'{text}compute = {{ engine = "vllm", batch = 4, vllm = {vllm} }}\n')
    run, killed = tmp_path / "run", list[int]()

    def servers() -> list[int]:
        below = psutil.Process().children(recursive=True)  # vLLM gives itself another name
        guards = [
            one for one in below if one.status() != psutil.STATUS_ZOMBIE and "guard.py" in " ".join(one.cmdline())
        ]
        return [child.pid for guard in guards for child in guard.children()]

    def kill() -> None:
        end = time.monotonic() + STARTS_WITHIN
        while time.monotonic() < end and not (run / "iter-1" / "checkpoint.json").exists():
            time.sleep(0.1)
        killed.extend(servers())
        for pid in killed:
            os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    ended = call("run", "recipe.toml", "--out", "run")
    killer.join()
    assert ended.code == 0, ended.err
    assert len(killed) == 1
    assert caplog.text.count("vLLM was lost (exit code 137) and is started again") == 1
    require_exact(run, config_of(tmp_path))
    assert servers() == [], "they end with the run"
    assert (run / "vllm" / "server-0.log").read_text().count("Starting vLLM server on") == 2
