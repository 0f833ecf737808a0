"""A warm-up on reference solutions teaches a model that solves nothing to act, on tasks it has not seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("peft", reason="needs the learning half")

from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import internalize as it
from internalize.environments import registry
from internalize.runs.store import read_jsonl
from tests.command import Call
from tests.fluent import save_fluent
from tests.toy import Toy

SET = [
    "env.name=toys", "env.options={size=48}", "evaluate.final_splits=[]", "evaluate.tasks=24", "rollout.max_steps=3",
    "rollout.max_action_tokens=12", "distill.batch=4", "distill.lr=1e-2", "distill.lora_r=8", "distill.epochs=6",
]  # fmt: skip


class Unsolved(Toy):
    """Boxes without reference solutions."""

    def solve(self, task: it.Task) -> tuple[it.ToolCall, ...]:
        return ()


@pytest.fixture(autouse=True)
def _environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toys", registry.Builtin("tests.toy", "Toy", "boxes"))
    monkeypatch.setitem(registry.BUILTIN, "unsolved", registry.Builtin(__name__, "Unsolved", "boxes"))


def success(out: Path, changes: list[str]) -> float:
    bench = it.open_workbench(it.load_config(None, changes), out)
    found = it.evaluate(bench, bench.starter).success
    bench.close()
    assert found
    return found.mean


def test_it_learns_to_act_and_the_adapter_is_taken_by_a_recipe(tmp_path: Path, call: Call) -> None:
    source = f"model.source={json.dumps(str(save_fluent(tmp_path / 'model')))}"
    (tmp_path / "recipe.toml").write_text("")
    changes = [word for change in (*SET, source) for word in ("--set", change)]
    ended = call("warm-up", "recipe.toml", "--out", "warm", "--tasks", "40", *changes)
    assert ended.code == 0, ended.err
    assert "model.adapter=warm" in ended.out
    episodes = read_jsonl(tmp_path / "warm.jsonl", it.Trajectory)
    assert len(episodes) == 40
    assert {episode.score for episode in episodes} == {1.0}
    assert {episode.split for episode in episodes} == {"train"}
    before = success(tmp_path / "before", [*SET, source, "model.adapter=none"])
    after = success(tmp_path / "after", [*SET, source, f"model.adapter={tmp_path / 'warm'}"])
    assert after > before
    again = call("warm-up", "recipe.toml", "--out", "warm", *changes)
    assert (again.code, "already holds files" in again.err) == (2, True)


def test_it_goes_on_from_the_adapter_of_the_recipe(tmp_path: Path, call: Call) -> None:
    source = f"model.source={json.dumps(str(save_fluent(tmp_path / 'model')))}"
    (tmp_path / "recipe.toml").write_text("")
    losses = []
    for out, adapter in (("first", "none"), ("second", "first")):
        changes = [word for change in (*SET, source, f"model.adapter={adapter}") for word in ("--set", change)]
        ended = call("warm-up", "recipe.toml", "--out", out, "--tasks", "24", "--json", *changes)
        assert ended.code == 0, ended.err
        losses.append(json.loads(ended.out))
    assert losses[1]["first_loss"] < (losses[0]["first_loss"] + losses[0]["last_loss"]) / 2
    config = load_file(tmp_path / "second" / "adapter_model.safetensors")
    assert {tensor.shape[0] for name, tensor in config.items() if "lora_A" in name} == {16}, "the ranks of both, 8 each"


def test_an_adapter_that_cannot_be_joined_is_refused_before_training(tmp_path: Path, call: Call) -> None:
    source = save_fluent(tmp_path / "model")
    (tmp_path / "recipe.toml").write_text("")
    model = AutoModelForCausalLM.from_pretrained(source)
    settings = LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(model, settings).save_pretrained(tmp_path / "other")
    changes = (*SET, f"model.source={json.dumps(str(source))}", "model.adapter=other")
    ended = call("warm-up", "recipe.toml", "--out", "w", *[word for one in changes for word in ("--set", one)])
    assert ended.code == 2
    assert "set model.adapter = 'none' to begin with the model alone" in ended.err
    assert not (tmp_path / "w").exists()


def test_what_cannot_be_learnt_from_is_refused(tmp_path: Path, call: Call) -> None:
    (tmp_path / "recipe.toml").write_text("")
    changes = [word for change in ("env.name=unsolved", *SET[1:]) for word in ("--set", change)]
    unsolved = call("warm-up", "recipe.toml", "--out", "w", *changes)
    assert (unsolved.code, "no reference solutions" in unsolved.err) == (2, True)
