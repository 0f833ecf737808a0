"""The whole command over one server that breaks: it acts, writes, selects and judges; nothing is lost, doubled or 0.

A run over a server that fails most requests, after an outage, leaves the records of a run over one that never does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("peft", reason="distillation needs the learning half")

from internalize.environments import registry
from internalize.inference import endpoints
from internalize.inference.cached import CachedReply
from internalize.inference.retries import Retries
from internalize.records import Trajectory
from internalize.runs.store import read_jsonl
from tests.command import Call, Ended
from tests.faulty_server import NO_ANSWER, FaultyServer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.writer import ANSWERS, stage_of

pytestmark = pytest.mark.server

OFTEN = [kind for kind in NO_ANSWER if kind != "slow"]  # a slow one takes its whole time-out
MIXED = ("slow", *OFTEN * 16, "wrong ids")  # three wrong answers in a row would have the lexical selector serve
REPLIES = ("selections.jsonl", "extraction.jsonl")  # with answers that were asked for again, in any order
KEY = "sk-0123456789-do-not-show"
RECIPE = """
iterations = 1
model = { source = "MODEL", adapter = "none", endpoint = "x", max_context = 2000, batch = 12 }
env = { name = "claiming" }
rollout = { tasks = 5, attempts = 2, max_steps = 4, max_action_tokens = 6 }
extract = { source = "SOURCE", endpoint = "x", groups = "all", add = 20 }
inject = { selector = "llm", endpoint = "x", k = 2 }
distill = { tasks = 5, epochs = 1, lora_r = 2, divergence = "sft" }
evaluate = { tasks = 5, final_tasks = 5, drift = 0, resamples = 100 }
judge = { kind = "model", endpoint = "x" }
endpoints.x = { base_url = "URL", model = "m", key_env = "X_KEY", concurrency = 16, timeout = 4, tries = TRIES }
"""


def reply(messages: list[dict[str, Any]], schema: dict[str, Any] | None) -> str:
    """What the server's model says: as the writer, the judge, the selector, or the agent."""
    asked = messages[min(1, len(messages) - 1)]["content"]
    wanted = set(schema["properties"]) if schema else set()
    if not schema:
        return act([message["content"] for message in messages])
    if wanted == {"ok"}:  # the probe's
        return '{"ok": true}'
    if wanted == {"rationale", "ids"}:
        ids = re.findall(r"^\[([0-9a-f]{12})\]", asked, re.MULTILINE)
        return json.dumps({"rationale": "It fits.", "ids": ids[:2]})
    if wanted == {"reason", "correct"}:
        reference, answer = re.findall(r"<reference-\w+>\n(.*)\n<", asked), re.findall(r"<answer-\w+>\n(.*)\n<", asked)
        return json.dumps({"reason": "Compared.", "correct": reference[0] in answer[0]})
    text = messages[0]["content"]
    return json.dumps(ANSWERS[stage_of(text)](text))


def act(said: list[str]) -> str:
    """Look three times and answer, or, at odd boxes, answer at once what is wrong."""
    if not (asked := re.findall(r"in box (\d+)", " ".join(said[:2]))):
        return "ok"  # the probe of tools
    box = int(asked[0])
    seen = re.match(r"Inside: (\d)", said[-1])
    if box % 2:
        return "answer[9]"
    return f"answer[{seen[1]}]" if seen and len(said) > 6 else f"look[{box}]"


def failing(server: FaultyServer, messages: list[dict[str, Any]], schema: dict[str, Any] | None) -> str:
    """`reply` until the rollouts have begun; then the server goes away."""
    if server.answered == 53:  # two probes, and 24 answers for each suite of three even boxes and two odd ones
        server.share = 1.0
    return reply(messages, schema)


@pytest.fixture
def run(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`internalize run` in a folder of its own, over a server. Nothing waits long between tries."""
    monkeypatch.setenv("X_KEY", KEY)
    monkeypatch.setattr(endpoints, "Retries", lambda: Retries(first=0.001, longest=0.005))
    monkeypatch.setitem(
        registry.BUILTIN, "claiming", registry.Builtin("tests.end_to_end.test_plugged_in", "ClaimingToy", "")
    )
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def start(server: FaultyServer, out: str, tries: int, source: str = "external") -> Ended:
        text = RECIPE.replace("MODEL", str(tmp_path / "model")).replace("SOURCE", source)
        recipe = text.replace("URL", server.base_url).replace("TRIES", str(tries))
        (tmp_path / "recipe.toml").write_text(recipe)
        return call("run", "recipe.toml", "--out", out, "--resume")

    return start


def plain(value: Any) -> Any:
    """Without what time it took, and numbers to three digits: answers come in any order, and sums round with it."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items() if key != "seconds"}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


def records(run_dir: Path) -> dict[str, Any]:
    """What a run says, whatever the order of answers."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*.jsonl")):
        name = path.relative_to(run_dir).as_posix()
        lines = [plain(json.loads(line)) for line in path.read_text().splitlines()]
        if path.name not in ("progress.jsonl", *REPLIES):
            found[name] = lines
    return found | {p.parent.name: p.read_bytes() for p in run_dir.glob("iter-*/pool.json")}


def test_a_run_over_a_thousand_faults_is_the_run_over_none_and_tells_no_key(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    printed = []
    with FaultyServer(reply, key=KEY) as server:
        ended = run(server, "quiet", tries=3)
        assert ended.code == 0, ended.err
    with FaultyServer(lambda *said: failing(server, *said), seed=4, kinds=MIXED, key=KEY) as server:
        ended = run(server, "faulty", tries=4)
        assert ended.code == 3, ended.err
        assert "run the same command with --resume" in ended.err
        printed += [ended, run(server, "faulty", tries=2)]
        assert printed[-1].code == 3  # it is still out of reach
        server.share, server.reply = 0.88, reply
        ended = run(server, "faulty", tries=100)
        assert ended.code == 0, ended.err
        assert server.faults.total() >= 1000
        assert set(server.faults) >= set(OFTEN)
    quiet, faulty = records(tmp_path / "quiet"), records(tmp_path / "faulty")
    assert faulty.keys() == quiet.keys()
    for name in quiet:
        assert faulty[name] == quiet[name], name
    played = [
        t for p in sorted(tmp_path.glob("faulty/iter-*/*.jsonl")) if _is_played(p) for t in read_jsonl(p, Trajectory)
    ]
    assert len({t.id for t in played}) == len(played)
    assert all(t.failure is None for t in played)
    assert {i.served_by for t in played for step in t.steps if (i := step.injection)} == {"llm:x/m"}
    for name in REPLIES:
        asked, once = (
            [line.key for line in read_jsonl(tmp_path / run_dir / "iter-1" / name, CachedReply) if line.reply]
            for run_dir in ("faulty", "quiet")
        )
        assert set(asked) >= set(once), "what was answered without faults was answered with them"
        assert len(asked) == len(set(asked)), "nothing that was answered was asked again"
    written = b"".join(p.read_bytes() for p in (tmp_path / "faulty").rglob("*") if p.is_file())
    assert KEY not in f"{[*printed, ended]} {caplog.text} {written!r}"


def _is_played(path: Path) -> bool:
    return path.name in ("rollouts.jsonl", "teacher.jsonl") or path.name.startswith("episodes-")
