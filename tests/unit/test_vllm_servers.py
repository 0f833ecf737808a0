"""Servers that a run starts for itself: a double of vLLM in processes of its own, killed, stuck and left alone."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("peft", reason="a server is compared with the model here")

from internalize.config.schema import Config, load_config
from internalize.errors import UserError
from internalize.inference.replicas import ReplicaEngine
from internalize.inference.vllm_servers import VllmServers
from internalize.records import Checkpoint, Generation, Sampling
from internalize.runs import names
from internalize.stages.backends import require
from internalize.training.checkpoint import save_checkpoint
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
PROMPT = tiny_tokenizer().encode("search[json decoder] visit")
WAITS = 120.0  # seconds that a test waits for what must come


def double(folder: Path, module: str = "tests.vllm_double") -> Path:
    """What stands for the Python of vLLM's environment."""
    script = folder / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {module} "$@"\n')
    script.chmod(0o755)
    return script


def recipe(folder: Path, **vllm: Any) -> Config:
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    compute = {"engine": "vllm", "batch": 4, "device": "cpu", "vllm": {"python": str(double(folder)), **vllm}}
    model = {"source": str(folder / "model"), "max_context": 400, "protocol": "bracket"}
    return Config.model_validate({"compute": compute, "model": model, "distill": {"lora_r": 4}})


def until(came: Callable[[], object]) -> None:
    end = time.monotonic() + WAITS
    while not came():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.05)


def pids(folder: Path, number: int = 0) -> list[int]:
    """Processes of a server so far, the one of now last."""
    return [int(pid) for pid in re.findall(r"^pid (\d+)$", log(folder, number), re.MULTILINE)]


def log(folder: Path, number: int = 0) -> str:
    return (folder / names.VLLM / f"server-{number}.log").read_text()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return state.rpartition(")")[2].split()[0] != "Z"


def trained(policy: LocalPolicy, root: Path) -> Checkpoint:
    for name, weight in policy.model.named_parameters():
        if "lora_B" in name:
            weight.data += 0.3
    found = {"id": save_checkpoint(policy.model, root / "c1"), "path": "c1", "iteration": 1}
    return policy.starter.model_copy(update=found)


async def difference(policy: LocalPolicy, conversation: str = "") -> float:
    """The largest between the servers' log-probabilities and those of the weights held here."""
    turn = await policy.agent.engine.generate(PROMPT, conversation=conversation, seed=1)  # type: ignore[attr-defined]
    here = policy.logprobs([*PROMPT, *turn.token_ids], len(PROMPT))
    return max(abs(a - b) for a, b in zip(turn.logprobs, here, strict=True))


def test_servers_are_started_killed_started_again_and_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    policy = LocalPolicy.of(recipe(tmp_path, servers=2), check=False)

    async def work() -> None:
        await policy.load(policy.starter, tmp_path)
        assert await difference(policy) < 1e-3
        checkpoint = trained(policy, tmp_path)
        await policy.load(checkpoint, tmp_path)
        for number in (0, 1):
            os.kill(pids(tmp_path, number)[-1], signal.SIGKILL)
        for name in "abcd":
            assert await difference(policy, name) < 1e-3, "what a server held it has again"

    asyncio.run(work())
    lost = [r.getMessage() for r in caplog.records if "was lost" in r.getMessage()]
    assert sorted(line.partition(" was")[0] for line in lost) == ["vLLM server 0", "vLLM server 1"]
    assert all("exit code 137" in line and "server-" in line for line in lost)
    now = [pids(tmp_path, number)[-1] for number in (0, 1)]
    policy.close()
    assert not any(map(alive, now))


def test_they_end_with_a_process_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "python").write_text('#!/bin/sh\necho "pid $$"\nexec sleep 1000\n')
    (tmp_path / "python").chmod(0o755)
    config = load_config(None, ["compute.engine=vllm", f'compute.vllm.python="{tmp_path / "python"}"'])
    text = f"""
        import time
        from pathlib import Path
        from internalize.config.schema import Config
        from internalize.inference.vllm_servers import VllmServers
        config = Config.model_validate_json({config.model_dump_json()!r})
        held = VllmServers(config, "m", Path({str(tmp_path / names.VLLM)!r}), cpu=True)
        time.sleep({10 * WAITS})
    """
    code = "\n".join(line[8:] for line in text.splitlines())
    killed = subprocess.Popen([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)})
    until(lambda: (tmp_path / names.VLLM / "server-0.log").exists() and pids(tmp_path))
    killed.kill()
    killed.wait()
    until(lambda: not alive(pids(tmp_path)[-1]))


def test_one_that_cannot_be_started_is_told_with_its_last_words(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\necho 'RuntimeError: no such device'; echo 'and more'; exit 7\n")
    (tmp_path / "python").chmod(0o755)
    config = load_config(None, ["compute.engine=vllm", f'compute.vllm.python="{tmp_path / "python"}"'])
    servers = VllmServers(config, "m", tmp_path / "vllm", cpu=True)
    told = r"^vLLM cannot be started \(exit code 7\): RuntimeError: no such device \(all of it: .*server-0\.log\)$"
    with pytest.raises(UserError, match=told):
        asyncio.run(servers.ready())
    servers.close()


def test_one_that_never_answers_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 1000\n")
    (tmp_path / "python").chmod(0o755)
    given = ["compute.engine=vllm", f'compute.vllm.python="{tmp_path / "python"}"', "compute.vllm.starts_within=0.5"]
    servers = VllmServers(load_config(None, given), "m", tmp_path / "vllm", cpu=True)
    with pytest.raises(UserError, match=r"^vLLM cannot be started \(it does not answer\): it printed nothing"):
        asyncio.run(servers.ready())
    servers.close()


def test_they_sleep_while_weights_are_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    policy = LocalPolicy.of(recipe(tmp_path, sleep=True), check=False)

    async def work() -> None:
        await policy.load(policy.starter, tmp_path)
        async with policy.asleep():
            assert "wakes" not in log(tmp_path)
        assert await difference(policy) < 1e-3

    asyncio.run(work())
    policy.close()
    assert re.findall(r"^(sleeps|wakes)$", log(tmp_path), re.MULTILINE) == ["sleeps", "wakes"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("settings", "address", "told"),
    [
        ({}, "", r"vLLM is not installed here; name its Python in compute\.vllm\.python$"),
        ({"vllm": {"python": "/nowhere/python"}}, "", r"compute\.vllm\.python = '/nowhere/python': is no program"),
        ({"vllm": {"python": sys.executable}, "rollout": "ray"}, "head:6379", r"RAY_ADDRESS = 'head:6379' may have"),
    ],
)
def test_where_servers_cannot_be_started_is_refused_first(
    settings: dict[str, Any], address: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=told):
        require(Config.model_validate({"compute": {"engine": "vllm", **settings}}))


class Named:
    """An engine that answers with its name."""

    def __init__(self, name: str) -> None:
        self.name, self.released = name, list[str]()

    async def generate(
        self, prompt_ids: object, *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        return Generation(token_ids=(), logprobs=(), text=self.name, finish="stop")

    def release(self, conversation: str) -> None:
        self.released.append(conversation)

    def reset(self) -> None: ...


def test_a_conversation_stays_where_it_began() -> None:
    engines = [Named("a"), Named("b")]
    engine = ReplicaEngine(engines)

    def where(conversation: str) -> str:
        return asyncio.run(engine.generate((1,), conversation=conversation, seed=0)).text

    assert [where(name) for name in ("1", "2", "3", "1", "2", "3")] == ["a", "b", "a", "a", "b", "a"]
    engine.release("1")
    engine.release("3")
    assert (engines[0].released, engines[1].released) == (["1", "3"], [])
    assert [where(name) for name in ("4", "5", "2")] == ["a", "a", "b"], "where the fewest are"
