"""Weights quantized by bitsandbytes, on a CPU: sampled, trained with LoRA, exported; what is refused without it."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from peft import PeftModel
from transformers import LlamaConfig, LlamaForCausalLM

from internalize import loop
from internalize.cli.main import cli
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.errors import ConfigError, UserError
from internalize.inference.loading import load_policy
from internalize.records import TrainSummary
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_tokenizer

needs_package = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the package bitsandbytes")
SIZES = {"vocab_size": 400, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama; its linear layers are as wide as a block of 64 weights."""
    found = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, initializer_range=0.2)).save_pretrained(found)
    tiny_tokenizer().save_pretrained(found)
    return found


def config_of(folder: Path, **model: Any) -> Config:
    named = {"source": str(folder), "adapter": "none", "quantize": "4bit", "max_context": 400, **model}
    return Config.model_validate({"model": named, "compute": {"device": "cpu"}, "distill": {"lora_r": 4}})


@needs_package
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_quantized_model_is_sampled_and_trained_exactly(folder: Path, dtype: str) -> None:
    """Against plain passes of the quantized model; gradients reach every layer's adapter."""
    policy = LocalPolicy.of(config_of(folder, dtype=dtype))
    check = policy.self_check
    assert check
    assert (check.engine, check.scorer) == ("slots", "packed")
    assert check.logprobs < 1e-3
    layer = policy.model.base_model.model.model.layers[0].self_attn.q_proj  # type: ignore[union-attr,operator,index]
    assert layer.base_layer.weight.dtype == torch.uint8  # type: ignore[union-attr]
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 7  # both factors of seven linear layers in two blocks
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        policy.model(input_ids=ids)  # sampling before training must not change what has gradients
        for weight in trained:
            weight.add_(0.01)
    policy.model(input_ids=ids).logits.log_softmax(-1)[..., 7].sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained)


@needs_package
def test_an_iteration_on_quantized_weights_and_its_export(folder: Path, tmp_path: Path) -> None:
    values = (
        "iterations=1", "env.name=toy", "rollout.tasks=2", "rollout.max_steps=2", "rollout.max_action_tokens=5",
        "distill.tasks=2", "distill.epochs=1", "distill.filter=none", "distill.lr=1e-3", "evaluate.tasks=1",
        "evaluate.final_tasks=1", "evaluate.drift=1", "compute.batch=4", "model.max_context=600",
        "rollout.temperature=0.3", "distill.generator=student", "distill.lora_r=4", "model.adapter=none",
        "model.quantize=4bit", f"model.source={folder}",
    )  # fmt: skip
    config = load_config(None, values)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        loop.run(config, tmp_path / "run")
    trained = TrainSummary.model_validate_json((tmp_path / "run" / "iter-1" / "train.json").read_bytes())
    assert (trained.tensors, trained.without_gradient) == (2 * 2 * 7, 0)
    out = tmp_path / "out"
    ended = CliRunner().invoke(cli, ["export", str(tmp_path / "run"), "--out", str(out)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    policy = LocalPolicy.of(config, check=False)
    policy.restore(tmp_path / "run" / "iter-1" / "checkpoint")
    base, _ = load_policy(str(folder), "none", "cpu", quantize="4bit")
    exported = PeftModel.from_pretrained(base, str(out)).eval()
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(input_ids=ids).logits, policy.model(input_ids=ids).logits)


@needs_package
def test_four_bits_are_other_weights(folder: Path) -> None:
    ids = torch.arange(5, 45)[None]
    whole, few = (load_policy(str(folder), "none", "cpu", quantize=kind)[0] for kind in ("none", "4bit"))
    with torch.no_grad():
        a, b = (model(input_ids=ids).logits.log_softmax(-1) for model in (whole, few))
    assert 1e-3 < float((a - b).abs().mean()) < 1.0


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="the package is here")
def test_without_the_package_it_is_one_sentence(folder: Path) -> None:
    with pytest.raises(UserError, match=r"^model\.quantize = '4bit' needs the package bitsandbytes: pip install"):
        load_policy(str(folder), "none", "cpu", quantize="4bit")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"distill.lora_r": "0", "model.adapter": '"none"'}, "quantized weights cannot be trained; set distill.lora_r"),
        ({"distill.lora_r": "4"}, "no adapter is merged into quantized weights"),  # the starter of 'builtin'
        ({"distill.lora_r": "4", "model.adapter": '"./a"'}, "no adapter is merged into quantized weights"),
        (
            {"distill.lora_r": "4", "model.adapter": '"none"', "compute.train": '"accelerate"'},
            r"model\.quantize = '4bit' excludes compute\.train = 'accelerate'",
        ),
    ],
)
def test_what_quantized_weights_cannot_do_is_refused(settings: dict[str, str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        load_config(None, ['model.quantize="4bit"', *(f"{key}={value}" for key, value in settings.items())])


def test_a_run_of_before_goes_on() -> None:
    config = Config()
    stored = config.dump()
    del stored["model"]["quantize"]
    assert config.changed_from(stored) == []
    assert "quantize" not in config.shaping["model"]
    other = load_config(None, ['model.quantize="4bit"', 'model.adapter="none"', "distill.lora_r=4"])
    assert "model.quantize" in other.changed_from(stored)
