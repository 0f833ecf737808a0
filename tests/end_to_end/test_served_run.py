"""`internalize serve` over a run: any kept checkpoint answers, with or without its pool, and can be switched."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="needs the extra 'serve'")

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.errors import ConfigError, UserError
from internalize.experience.pool import ExperiencePool, save_pool
from internalize.records import Experience, Trajectory
from internalize.runs.store import append_jsonl, read_jsonl
from internalize.serve.records import EpisodeScore, RecordedCall
from internalize.stages.recorded import open_run
from internalize.stages.served import served_episodes
from internalize.stages.serving import Sources, endpoint, token_of
from tests.command import Call
from tests.real_servers import free_port
from tests.served import Served
from tests.tiny import tiny_model, tiny_tokenizer

pytestmark = [pytest.mark.server, pytest.mark.slow]
ITEM = Experience.new("Look into the box that the question names before you answer.", "principle", "contrast")
ASKED = {"model": "m", "messages": [{"role": "user", "content": "Which number is in box 3?"}]}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations over boxes; the second was rolled back."""
    folder = tmp_path_factory.mktemp("serve")
    tiny_model().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    settings = [
        f'model.source="{folder / "model"}"', "iterations=2", "env.name=toy", "rollout.tasks=3", "rollout.attempts=2",
        "rollout.max_steps=2", "rollout.max_action_tokens=6", "distill.tasks=2", "distill.epochs=1", "distill.lora_r=2",
        "distill.filter=none", "distill.divergence=sft", "distill.lr=1e-2", "evaluate.tasks=3", "evaluate.drift=0",
        "evaluate.final_splits=[]", "compute.batch=4",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        loop.run(load_config(None, settings), folder / "run")
    gate = folder / "run" / "iter-2" / "gate.json"
    gate.write_text(gate.read_text().replace('"promote": true', '"promote": false'))
    save_pool(ExperiencePool((ITEM,), 50), folder / "run" / "iter-1" / "pool.json")
    return folder / "run"


async def call(client: httpx.AsyncClient, address: str, episode: str) -> httpx.Response:
    return await client.post(f"{address}/episodes/{episode}/v1/chat/completions", json=ASKED, timeout=60)


def test_a_run_serves_what_it_kept_and_switches_without_dropping_a_call(run: Path, tmp_path: Path) -> None:
    recorded = open_run(run)
    first, second = recorded.checkpoint(1), recorded.checkpoint(2)
    assert first
    assert second

    async def work() -> None:
        settings = load_config(None, ["serve.port=0"]).serve
        config = recorded.config.model_copy(update={"serve": settings})
        async with (
            endpoint(config, Sources(recorded), tmp_path / "r") as (address, model),
            httpx.AsyncClient(timeout=60) as client,
        ):
            assert model.acting.checkpoint == first.id  # the last that the gate kept
            assert model.acting.pattern == "stepwise"
            assert (await call(client, address, "kept")).status_code == 200
            calls = [asyncio.create_task(call(client, address, f"e{n}")) for n in range(12)]
            await asyncio.sleep(0.02)
            switched = await client.post(f"{address}/checkpoint", json={"iteration": 2, "pool": False})
            assert switched.json() == {"checkpoint": second.id, "pattern": "none", "pool_version": None}
            assert [answer.status_code for answer in await asyncio.gather(*calls)] == [200] * 12
            assert (await call(client, address, "second")).status_code == 200
            for wrong in ({"iteration": 7}, {"iteration": "x"}, {"weights": "/etc"}, {"iteration": True}):
                refused = await client.post(f"{address}/checkpoint", json=wrong)
                assert refused.status_code == 400, wrong
            assert (await client.get(f"{address}/health")).json()["checkpoint"] == second.id
            assert (await client.post(f"{address}/checkpoint", json={"iteration": 0})).status_code == 200
            assert (await call(client, address, "starter")).status_code == 200
            back = await client.post(f"{address}/checkpoint", json={})
            assert back.json()["checkpoint"] == first.id

    asyncio.run(work())
    calls = {call.episode: call for call in read_jsonl(tmp_path / "r" / "calls.jsonl", RecordedCall)}
    assert len(calls) == 15
    assert calls["kept"].acting.checkpoint == first.id
    assert calls["kept"].injection
    assert calls["kept"].injection.item_ids == (ITEM.id,)
    assert calls["second"].acting.checkpoint == second.id
    assert calls["second"].injection is None
    assert {call.acting.checkpoint for call in calls.values()} == {
        first.id,
        second.id,
        calls["starter"].acting.checkpoint,
    }
    assert all(call.turn.token_ids and call.turn.logprobs for call in calls.values())
    assert calls["kept"].turn.logprobs != calls["second"].turn.logprobs


def test_nobody_in_a_network_is_let_in_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"serve\.token_env"):
        token_of(load_config(None, ['serve.host="0.0.0.0"']))
    with pytest.raises(UserError, match="SERVE_TOKEN is not set"):
        token_of(load_config(None, ['serve.token_env="SERVE_TOKEN"']))
    monkeypatch.setenv("SERVE_TOKEN", "x")
    assert token_of(load_config(None, ['serve.host="0.0.0.0"', 'serve.token_env="SERVE_TOKEN"'])) == "x"
    assert token_of(Config()) == ""


def test_the_command_serves_a_run_until_it_is_told_to_end(run: Path, call: Call, tmp_path: Path) -> None:
    """Called, asked over HTTP, and ended by a signal, as a service manager would."""
    address, answers = f"http://127.0.0.1:{(port := free_port())}", list[int]()

    def use_and_end() -> None:
        with httpx.Client(timeout=60) as client:
            for _ in range(600):
                try:
                    client.get(f"{address}/health")
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            answers.append(client.post(f"{address}/v1/chat/completions", json=ASKED).status_code)
        os.kill(os.getpid(), signal.SIGTERM)

    user = threading.Thread(target=use_and_end)
    user.start()
    ended = call("serve", run, "--out", tmp_path / "r", "--no-pool", "--set", f"serve.port={port}")
    user.join()
    assert (ended.code, answers) == (0, [200]), ended
    assert ended.out.startswith(f"{address}/v1 answers with ")
    assert len(read_jsonl(tmp_path / "r" / "calls.jsonl", RecordedCall)) == 1
    assert "no such checkpoint" in call("serve", run, "--out", tmp_path / "r", "--checkpoint", "nowhere").err


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four recorded episodes of one call each, the answers "4"; the first was scored by its caller."""
    with Served(["4"] * 9, folder=tmp_path / "r") as served:
        for name in ("posted", "filed", "judged", "nothing"):
            answer = httpx.post(f"{served.url}/episodes/{name}/v1/chat/completions", json=ASKED)
            assert answer.status_code == 200
    append_jsonl(tmp_path / "r" / "scores.jsonl", [EpisodeScore(episode="posted", score=0.25)])
    return tmp_path / "r"


def scores(found: list[Trajectory]) -> list[float | None]:
    return [trajectory.score for trajectory in found]


def test_scores_come_from_the_caller_a_file_a_judge_or_a_verifier(folder: Path, tmp_path: Path) -> None:
    assert scores(served_episodes(folder, Config())) == [0.25, None, None, None]
    file = tmp_path / "s.jsonl"
    lines: list[dict[str, Any]] = [
        {"episode": "filed", "success": True},
        {"episode": "judged", "reference": "4"},
        {"episode": "posted", "score": 1.0},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scores(served_episodes(folder, Config(), file)) == [0.25, 1.0, 1.0, None]
    (tmp_path / "mine.py").write_text("def last(task, trajectory):\n    return len(task.question) / 100\n")
    config = load_config(None, [f'serve.verifier="{tmp_path}/mine.py:last"'])
    assert scores(served_episodes(folder, config, file)) == [0.25, 1.0, 1.0, 0.25]
    file.write_text('{"episode": "unknown", "score": 1}\n')
    with pytest.raises(UserError, match="line 1: no episode 'unknown' was recorded"):
        served_episodes(folder, Config(), file)


def test_the_command_writes_what_extract_and_distill_read(folder: Path, call: Call) -> None:
    ended = call("episodes", folder, "--out", "t.jsonl")
    assert (ended.code, ended.out) == (
        0, "t.jsonl: 4 trajectories, 3 unscored, success 25.0%; 4 steps, 4 with token ids\n"
    )  # fmt: skip
    found = read_jsonl(Path("t.jsonl"), Trajectory)
    assert [t.attempt for t in found] == [0, 1, 2, 3]  # of one question
    assert len({t.task_id for t in found}) == 1
    assert call("episodes", "nowhere", "--out", "t.jsonl").code == 2
