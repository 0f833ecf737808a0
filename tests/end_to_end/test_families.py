"""One iteration and its export for families of models, each by the engine and the scorer that its self-check chose.

`make test` plays a few; all that people train small agents with: FAMILIES=all python -m pytest THIS_FILE
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from benchmarks.families import NAMED, tiny
from internalize import loop
from internalize.cli.main import cli
from internalize.config.schema import load_config
from internalize.environments import registry
from internalize.records import TrainSummary
from internalize.runs.store import read_run
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_tokenizer

ALL, FEW = os.environ.get("FAMILIES") == "all", NAMED[:3]
WAYS = [(4, "teacher"), (0, "student"), *([(4, "student"), (0, "teacher")] if ALL else [])]
IDS = torch.arange(5, 40)[None]
SET = (
    "iterations=1", "env.name=toy", "rollout.tasks=2", "rollout.max_steps=2", "rollout.max_action_tokens=5",
    "distill.tasks=2", "distill.epochs=1", "distill.filter=none", "distill.lr=1e-3", "evaluate.tasks=1",
    "evaluate.final_tasks=1", "evaluate.drift=1", "compute.batch=4", "model.max_context=600",
    "rollout.temperature=0.3",  # so that actions are likelier than a guess, which random weights hardly are
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("lora_r", "generator"), WAYS)
@pytest.mark.parametrize("kind", NAMED if ALL else FEW)
def test_a_family_learns_and_is_exported(kind: str, lora_r: int, generator: str, tmp_path: Path) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    tiny(kind, len(tiny_tokenizer())).save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    who = [f"distill.generator={generator}", *(["distill.divergence=forward"] if generator == "teacher" else [])]
    config = load_config(None, [*SET, *who, f"distill.lora_r={lora_r}", f"model.source={base}"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        loop.run(config, run)
    check = read_run(run).self_check
    assert check is not None
    assert check.engine
    trained = TrainSummary.model_validate_json((run / "iter-1" / "train.json").read_bytes())
    assert trained.steps
    assert trained.tensors > trained.without_gradient
    ended = CliRunner().invoke(cli, ["export", str(run), "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    loader = AutoPeftModelForCausalLM if lora_r else AutoModelForCausalLM
    policy = LocalPolicy.of(config, check=False)
    policy.restore(run / "iter-1" / "checkpoint")
    with torch.no_grad():
        exported = loader.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()(IDS).logits
        torch.testing.assert_close(exported, policy.model(IDS).logits, atol=1e-4, rtol=1e-3)
        before = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()(IDS).logits
        assert not torch.equal(exported, before)
