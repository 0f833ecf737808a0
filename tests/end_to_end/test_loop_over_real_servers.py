"""The whole command with servers that people run: they act, write the experience and pick it at each step.

The model that is trained is the tiny one; the servers hold the built-in model, which seldom writes anything of use
and, where no schema holds it, seldom JSON. What counts is that every stage is gone through and says what happened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="needs the extra 'server'")
pytest.importorskip("peft", reason="distillation needs the learning half")

from internalize.environments import registry
from internalize.experience.extract.llm import Extraction
from internalize.experience.pool import load_pool
from internalize.inference.cached import CachedReply
from internalize.records import Trajectory
from internalize.runs.store import read_jsonl
from tests.command import Call
from tests.faulty_server import FaultyServer
from tests.real_servers import RealServer
from tests.tiny import tiny_model, tiny_tokenizer
from tests.writer import ANSWERS, stage_of

pytestmark = pytest.mark.server

RECIPE = """
iterations = 1
model = { source = "MODEL", adapter = "none", endpoint = "actor", max_context = CONTEXT, batch = 2 }
env = { name = "toy" }
rollout = { tasks = TASKS, attempts = 1, max_steps = 1, max_action_tokens = 6 }
extract = { source = "SOURCE", endpoint = "writer", groups = "all", per_task = 1, context = CONTEXT }
inject = { selector = "llm", endpoint = "SELECTOR", k = 1 }
distill = { tasks = 1, epochs = 1, lora_r = 2, divergence = "sft", filter = "none" }
evaluate = { tasks = 1, final_splits = [], drift = 0, resamples = 100 }
endpoints.actor = { base_url = "ACTOR_URL", model = "ACTOR_NAME", concurrency = 2, timeout = 900, tries = 2 }
endpoints.writer = { base_url = "WRITER_URL", model = "WRITER_NAME", concurrency = 2, timeout = 900, tries = 2 }
"""


class Ran:
    """A finished run over real servers."""

    def __init__(self, out: Path) -> None:
        self.folder = out / "iter-1"
        self.extraction = Extraction.model_validate_json((self.folder / "extraction.json").read_bytes())
        self.items = load_pool(self.folder / "pool.json").items
        selections = self.folder / "selections.jsonl"
        self.replies = read_jsonl(selections, CachedReply) if selections.exists() else []
        files = (
            "rollouts.jsonl",
            "teacher.jsonl",
            "episodes-dev-internalized-1.jsonl",
            "episodes-dev-in-context-1.jsonl",
        )
        self.played = {name: read_jsonl(self.folder / name, Trajectory) for name in files}


@pytest.fixture
def run(tmp_path: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`internalize run`, called again while it says that work is left."""
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", ""))
    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")

    def start(actor: RealServer, writer: RealServer, **values: object) -> Ran:
        servers = (("ACTOR", actor), ("WRITER", writer))
        told = {
            f"{name}_{part}": said for name, (url, model) in servers for part, said in (("URL", url), ("NAME", model))
        }
        text = RECIPE
        for name, value in {**told, "MODEL": tmp_path / "model", **values}.items():
            text = text.replace(name, str(value))
        (tmp_path / "recipe.toml").write_text(text)
        for _ in range(2):  # most answers may be refused, once
            ended = call("run", "recipe.toml", "--out", "run", "--resume")
            if ended.code != 3:
                break
        assert ended.code == 0, ended.err
        found = Ran(tmp_path / "run")
        assert all(t.failure is None and t.score is not None for played in found.played.values() for t in played)
        return found

    return start


def test_llama_cpp_acts_and_writes_as_the_policy_itself(run: Any, llama_server: RealServer) -> None:
    found = run(llama_server, llama_server, SOURCE="self", SELECTOR="self", CONTEXT=1000, TASKS=1)
    assert found.extraction.writer == f"actor/{llama_server.model}"
    assert found.extraction.proposals == 1
    assert [item.source for item in found.items] == [f"actor/{llama_server.model}"] * len(found.items)
    assert found.items


def test_one_server_acts_and_another_writes_and_selects(
    run: Any, transformers_serve: RealServer, llama_server: RealServer
) -> None:
    found = run(transformers_serve, llama_server, SOURCE="external", SELECTOR="writer", CONTEXT=1000, TASKS=1)
    assert found.extraction.writer == f"writer/{llama_server.model}"
    assert found.extraction.proposals == 1
    assert found.items
    assert all(t.text_only for t in found.played["rollouts.jsonl"])


def test_llama_cpp_picks_from_what_another_wrote(run: Any, llama_server: RealServer) -> None:
    def write(messages: list[dict[str, Any]], _: object) -> str:
        text = messages[0]["content"]
        return json.dumps(ANSWERS[stage_of(text)](text))

    with FaultyServer(write) as scripted:
        writer = RealServer(scripted.base_url, "scripted")
        found = run(llama_server, writer, SOURCE="external", SELECTOR="self", CONTEXT=1000, TASKS=3)
    assert len(found.items) == 3
    shown = [step.injection for t in found.played["teacher.jsonl"] for step in t.steps]
    assert [i.served_by for i in shown if i] == [f"llm:actor/{llama_server.model}"]
    assert found.replies


def test_transformers_serve_writes_no_json_and_the_run_says_so_and_ends(
    run: Any, transformers_serve: RealServer
) -> None:
    found = run(transformers_serve, transformers_serve, SOURCE="self", SELECTOR="self", CONTEXT=512, TASKS=1)
    assert found.extraction.writer == f"actor/{transformers_serve.model}"
    assert found.extraction.groups == 1
    assert len(found.extraction.refused) + found.extraction.proposals >= 1
