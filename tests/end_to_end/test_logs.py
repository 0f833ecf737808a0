"""Logs of another agent to a pool and to weights, by the commands a user would call."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from internalize.experience.pool import load_pool
from internalize.records import Trajectory
from internalize.runs.store import read_jsonl, write_jsonl
from tests.command import Call, refused

pytest.importorskip("peft", reason="distillation needs the learning half")

RECIPE = """
model = { source = "SOURCE", adapter = "none", protocol = "json" }
distill = { epochs = 6, lr = 1e-2, lora_r = 4, divergence = "sft", held_out = 0.0 }
"""


def call_of(name: str, **arguments: str) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}


def log(box: int, *, looks: bool) -> dict[str, Any]:
    """An agent that looks into the box before it answers, or guesses."""
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Boxes."},
        {"role": "user", "content": f"Which number is in box b.{box}?"},
    ]
    if looks:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call_of("look", box=f"b.{box}")]})
        messages.append({"role": "tool", "tool_call_id": "look", "content": f"Inside: {box % 7}"})
    messages.append({"role": "assistant", "content": None, "tool_calls": [call_of("say", number=str(box % 7))]})
    return {"messages": messages, "score": float(looks)}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    from tests.tiny import tiny_model, tiny_tokenizer  # noqa: PLC0415 - needs torch

    tiny_model().save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("SOURCE", str(tmp_path / "model")))
    return tmp_path / "recipe.toml"


def test_a_chat_log_becomes_a_pool_and_weights(recipe: Path, call: Call, tmp_path: Path) -> None:
    lines = [log(box, looks=looks) for box in range(100, 108) for looks in (True, False)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = call("logs", "import", "log.jsonl", "--out", "t.jsonl")
    assert ended.out == (
        "t.jsonl: 16 trajectories of 8 tasks, 0 unscored, success 50.0%; 24 steps, 0 without a call\n"
        "  files: 1 chat (OpenAI messages, a conversation a line); 24 calls\n"
    ), ended.err
    assert all(t.text_only for t in read_jsonl(tmp_path / "t.jsonl", Trajectory))

    assert call("extract", "t.jsonl", "--out", "pool.json").code == 0
    (item,) = load_pool(tmp_path / "pool.json").items
    assert item.text == "At the start, look the last name in the question."  # there is one name: first and last
    assert item.support == 8

    assert refused(
        call("distill", recipe, "t.jsonl", "--out", "weights", "--set", "distill.divergence=forward"),
        "nothing to internalize",
    )
    trained = call("distill", recipe, "t.jsonl", "--out", "weights")
    assert trained.code == 0, trained.err
    assert trained.out.startswith("weights: 8 trajectories, 6 steps, loss ")
    first, last = trained.out.split("loss ")[1].split(" -> ")
    assert float(last) < float(first) - 0.5
    assert (tmp_path / "weights" / "adapter_model.safetensors").is_file()


def test_sampled_ids_survive_beside_logs(recipe: Path, call: Call, tmp_path: Path) -> None:
    """Our own episodes and imported ones train together; what is exported comes back without its ids."""
    (tmp_path / "log.jsonl").write_text(json.dumps(log(100, looks=True)) + "\n")
    call("logs", "import", "log.jsonl", "--out", "t.jsonl")
    (imported,) = read_jsonl(tmp_path / "t.jsonl", Trajectory)
    steps = tuple(
        step.model_copy(update={"token_ids": (9, 10, 2), "logprobs": (-1, -1, -1)}) for step in imported.steps
    )
    write_jsonl(tmp_path / "both.jsonl", [imported, imported.model_copy(update={"id": "own", "steps": steps})])
    trained = call("distill", recipe, "both.jsonl", "--out", "weights", "--set", "distill.epochs=1")
    assert trained.out.startswith("weights: 2 trajectories, 1 steps"), trained.err
    assert call("logs", "export", "both.jsonl", "--out", "chat.jsonl").out == "chat.jsonl: 2 logs\n"
    call("logs", "import", "chat.jsonl", "--out", "again.jsonl")
    again = read_jsonl(tmp_path / "again.jsonl", Trajectory)
    assert [t.steps for t in again] == [imported.steps] * 2
    assert refused(call("logs", "export", "both.jsonl", "--out", "both.jsonl"), "is the file that is read")
    assert refused(call("logs", "import", "t.jsonl", "--out", "no/x.jsonl"), "the folder no does not exist")
    chat = ("logs", "import", "t.jsonl", "--format", "chat", "--out", "x.jsonl")
    assert refused(call(*chat), "t.jsonl, line 1: messages: field required")
    assert call("logs", "import", "t.jsonl", "--out", "x.jsonl").code == 0, "trajectories are a format too"
    assert read_jsonl(tmp_path / "x.jsonl", Trajectory) == [imported]
