"""Extraction by a language model where users meet it: the command, over a server that breaks, and the loop."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from internalize import loop
from internalize.cli.main import main
from internalize.config.endpoint import EndpointConfig
from internalize.config.schema import ExtractConfig, load_config
from internalize.environments import registry
from internalize.environments.registry import Builtin
from internalize.errors import Incomplete
from internalize.experience.extract.llm import Extraction, write
from internalize.experience.extract.session import ExtractionInput
from internalize.experience.pool import ExperiencePool, empty, load_pool
from internalize.experience.redact import Redactions
from internalize.inference.client import EndpointClient
from internalize.inference.retries import Retries
from internalize.inference.server import ServerChat
from internalize.records import Experience, PoolEdit, Trajectory
from internalize.runs.store import write_jsonl
from internalize.stages.backends import in_process
from tests.faulty_server import NO_ANSWER, FaultyServer
from tests.writer import ANSWERS, edits, held_ids, stage_of, task_number, tried

pytest.importorskip("openai", reason="endpoints need the extra 'server'")
RECIPE = """
[extract]
source = "external"
endpoint = "writer"
add = 50
[endpoints.writer]
base_url = "{url}"
model = "scripted"
concurrency = 16
tries = {tries}
timeout = 30
"""


def reply(messages: list[dict[str, Any]], schema: dict[str, Any] | None) -> str:
    assert schema
    assert schema["additionalProperties"] is False
    text = messages[0]["content"]
    return json.dumps(ANSWERS[stage_of(text)](text))


def extract(folder: Path, url: str, *more: str, tries: int = 100) -> int:
    (folder / "recipe.toml").write_text(RECIPE.format(url=url, tries=tries))
    command = ["extract", str(folder / "rollouts.jsonl"), "--out", str(folder / "pool.json")]
    try:
        main([*command, "--recipe", str(folder / "recipe.toml"), *more])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_the_command_writes_a_pool_over_an_endpoint_and_secrets_stay_here(tmp_path: Path) -> None:
    hidden = "sk-abcdefghij0123456789"
    write_jsonl(tmp_path / "rollouts.jsonl", [*tried(1, 2), *tried(3, seen=f"Inside: 3, key {hidden}")])
    with FaultyServer(reply) as server:
        assert extract(tmp_path, server.base_url) == 0
        assert server.answered == 4
        assert hidden not in json.dumps(server.requests)
    assert len(load_pool(tmp_path / "pool.json").items) == 3
    folder = tmp_path / "pool.extraction"
    found = Redactions.model_validate_json((folder / "redactions.json").read_bytes())
    assert found.stages["extract"].removed == {"api key": 4}
    assert Extraction.model_validate_json((folder / "extraction.json").read_bytes()).writer == "writer/scripted"


def test_a_dead_server_leaves_work_owed_and_no_pool(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "rollouts.jsonl", tried(1, 2))
    with FaultyServer(reply, share=1.0, kinds=("500",)) as server:
        assert extract(tmp_path, server.base_url, tries=1) == 3
    assert "2 of 2 questions are still to be answered" in capsys.readouterr().err
    assert not (tmp_path / "pool.json").exists()
    assert not (tmp_path / "pool.edits.jsonl").exists()
    with FaultyServer(reply) as server:
        assert extract(tmp_path, server.base_url) == 0
    assert len(load_pool(tmp_path / "pool.json").items) == 2


def write_over(
    server: FaultyServer, trajectories: list[Trajectory], folder: Path, pool: ExperiencePool, tries: int
) -> Any:
    """`write` over the server with next to no waiting between tries."""
    endpoint = EndpointConfig(base_url=server.base_url, model="m", timeout=30.0, tries=tries, concurrency=16)
    chat = ServerChat(EndpointClient("e", endpoint, Retries(first=0.001, longest=0.01)))
    settings = ExtractConfig(add=50, cap=60)
    return asyncio.run(write(ExtractionInput(trajectories, (), pool, 1), settings, chat, folder / "extraction.jsonl"))


@pytest.mark.parametrize(("tries", "share", "least"), [(100, 0.93, 500), (4, 0.8, 150)])
def test_hundreds_of_faults_lose_and_double_no_edit(tmp_path: Path, tries: int, share: float, least: int) -> None:
    """In one go with many tries a request, and with few in as many resumed calls as it takes."""
    trajectories = [t for n in range(26) for t in tried(n, steps=4, size=6000 if n % 2 else 0)]
    (tmp_path / "quiet").mkdir()
    with FaultyServer(reply) as server:
        wanted = write_over(server, trajectories, tmp_path / "quiet", empty(60), 3)
        asked = server.answered
    kinds = [kind for kind in NO_ANSWER if kind != "slow"]
    calls = 0
    with FaultyServer(reply, share=share, seed=5, kinds=kinds) as server:
        while calls < 100:
            calls += 1
            try:
                found = write_over(server, trajectories, tmp_path, empty(60), tries)
                break
            except Incomplete:
                assert not (tmp_path / "extraction.json").exists()
    assert server.faults.total() >= least
    assert set(server.faults) == set(kinds)
    assert (calls > 1) == (tries < 10)
    assert found == wanted
    assert len(found) == 26
    assert server.answered == asked, "nothing is asked twice that was answered"
    assert (tmp_path / "extraction.json").read_bytes() == (tmp_path / "quiet" / "extraction.json").read_bytes()


def test_ids_that_were_not_offered_are_never_acted_on(tmp_path: Path) -> None:
    pool = empty(60).apply(
        PoolEdit(op="ADD", item=Experience.new(f"When {word} comes up, try {word}.", "principle", "x"))
        for word in ("one", "two", "three")
    )

    def update(messages: list[dict[str, Any]], schema: dict[str, Any] | None) -> str:
        text = messages[0]["content"]
        if stage_of(text) != "compare":
            return reply(messages, schema)
        return json.dumps(
            edits({"op": "UPDATE", "targets": held_ids(text)[task_number(text) % 3 :][:1], "text": "Look."})
        )

    with FaultyServer(update, share=0.4, seed=2, kinds=("wrong ids",)) as server:
        found = write_over(server, [t for n in range(30) for t in tried(n)], tmp_path, pool, 3)
    assert server.faults["wrong ids"] >= 5
    record = Extraction.model_validate_json((tmp_path / "extraction.json").read_bytes())
    assert all("deadbeef0000" in one.reason for one in record.refused)
    assert {target for edit in found for target in edit.targets} <= {item.id for item in pool.items}
    pool.apply(found)


def test_the_loop_stops_at_an_outage_of_the_writer_and_resumes_without_asking_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from tests.end_to_end.test_loop import SET, policy  # noqa: PLC0415 - needs torch

    monkeypatch.setitem(registry.BUILTIN, "toy", Builtin("tests.toy", "Toy", ""))
    with FaultyServer(reply) as server:
        (tmp_path / "recipe.toml").write_text(RECIPE.format(url=server.base_url, tries=1))
        config = load_config(tmp_path / "recipe.toml", [*SET, "iterations=1", "extract.groups=all"])
        loop.run(config, tmp_path / "quiet", backends=lambda config, made: in_process(policy(config), made))
        asked = server.answered
        server.share, server.kinds = 0.5, ("500",)
        for _ in range(20):
            try:
                loop.run(
                    config,
                    tmp_path / "run",
                    resume=True,
                    backends=lambda config, made: in_process(policy(config), made),
                )
                break
            except Incomplete:
                assert not (tmp_path / "run" / "iter-1" / "pool.json").exists()
        assert server.faults.total() > 0
        assert server.answered == 2 * asked
    for name in ("edits.jsonl", "pool.json", "extraction.json", "train.jsonl"):
        assert (tmp_path / "run" / "iter-1" / name).read_bytes() == (tmp_path / "quiet" / "iter-1" / name).read_bytes()
    assert len(load_pool(tmp_path / "run" / "iter-1" / "pool.json").items) == 3


pytestmark = pytest.mark.server
