"""Checkpoints of models that also see are loaded and trained as the text models that they contain."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Mistral3Config,
    PreTrainedConfig,
    Qwen3_5Config,
    Qwen3VLConfig,
)

from internalize.config.distill import DistillConfig
from internalize.config.schema import ComputeConfig, Config
from internalize.inference.loading import load_policy
from internalize.training.adapter import adapted_names
from internalize.training.policy import LocalPolicy
from tests.tiny import tiny_tokenizer

TEXT = {
    "vocab_size": len(tiny_tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EYES = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
TOWER = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
HYBRID = TEXT | {"layer_types": ["linear_attention", "full_attention"]}
CASES = {
    "qwen3_vl": Qwen3VLConfig(text_config=TEXT, vision_config=EYES | {"deepstack_visual_indexes": [0]}),
    "qwen3_5": Qwen3_5Config(text_config=HYBRID, vision_config=EYES),
    "mistral3": Mistral3Config(
        text_config=TEXT | {"model_type": "mistral", "sliding_window": None},
        vision_config=TOWER | {"model_type": "pixtral"},
    ),
    "gemma3": Gemma3Config(text_config=TEXT | {"sliding_window": 8}, vision_config=TOWER),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_text_part_is_sampled_trained_and_adapted(name: str, tmp_path: Path) -> None:
    config: PreTrainedConfig = CASES[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    for rank in (4, 0):
        settings = Config(compute=ComputeConfig(batch=4), distill=DistillConfig(lora_r=rank))
        policy = LocalPolicy(settings, *load_policy(str(tmp_path), "none", "cpu", "float32"))
        found = policy.check()
        assert max(found.logprobs, found.scores, found.gradients) < 5e-5
        if rank:
            adapted = adapted_names(policy.model)
            assert len(adapted) >= 14
            assert not any("vision" in layer or "visual" in layer for layer in adapted)
