"""What LoRA adapts: layers by what they are, experts, no routers, and only what plain PEFT finds again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from peft import PeftModel
from transformers import PreTrainedModel

from internalize.errors import UserError
from internalize.training.adapter import adapted_names, new_adapter
from internalize.training.checkpoint import save_checkpoint
from internalize.training.weights import trained
from tests.tiny import tiny_model
from tests.unit.test_self_check import DELTA, MAMBA, made

IDS = torch.arange(5, 25)[None]
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
EXPERTS = {"gate_up_proj", "down_proj"}
CASES = {
    "Llama": ({}, ATTENTION | MLP),
    "Mixtral": ({}, ATTENTION | EXPERTS),
    "Qwen3Moe": ({"mlp_only_layers": []}, ATTENTION | EXPERTS),
    "Phimoe": ({}, ATTENTION | EXPERTS),
    "GptOss": ({}, ATTENTION | EXPERTS),
    "Qwen3Next": (DELTA, None),
    "FalconH1": (MAMBA | {"mamba_d_ssm": 64}, ATTENTION | MLP | {"in_proj"}),  # PEFT refuses out_proj there
    "GPT2": ({"n_embd": 32, "n_head": 4, "n_layer": 2}, {"c_attn", "c_proj", "c_fc"}),
}


def leaves(model: PeftModel) -> set[str]:
    return {name.rpartition(".")[2] for name in adapted_names(model)}


def built(family: str) -> PreTrainedModel:
    if family == "GPT2":
        config = transformers.GPT2Config(vocab_size=400, **CASES[family][0])
        return transformers.GPT2LMHeadModel(config).eval()
    return made(family, CASES[family][0])


@pytest.mark.parametrize("family", CASES)
def test_what_is_adapted_gets_a_gradient_and_is_found_again_by_plain_peft(family: str, tmp_path: Path) -> None:
    base = built(family)
    kept = {name: weight.clone() for name, weight in base.state_dict().items()}
    policy = new_adapter(base, 4, 0)
    wanted = CASES[family][1]
    assert wanted is None or leaves(policy) == wanted
    assert not any("router" in name or name.endswith(("mlp.gate", "lm_head")) for name in adapted_names(policy))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained(policy).values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    logits = policy(IDS).logits
    logits.log_softmax(-1)[..., 7].sum().backward()
    without = [name for name, weight in trained(policy).items() if weight.grad is None or not weight.grad.any()]
    assert without == []
    save_checkpoint(policy, tmp_path / "adapter")
    fresh = built(family)
    fresh.load_state_dict(kept)
    again = PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    torch.testing.assert_close(again(IDS).logits, logits, atol=1e-5, rtol=1e-4)


def test_experts_can_be_left_out() -> None:
    assert leaves(new_adapter(made("Mixtral", {}), 4, 0, experts=False)) == ATTENTION


def test_a_model_with_nothing_to_adapt_is_one_sentence() -> None:
    model = tiny_model()
    for layer in model.model.layers:
        layer.self_attn, layer.mlp = torch.nn.Identity(), torch.nn.Identity()
    with pytest.raises(UserError, match=r"no layers that LoRA can adapt; set distill\.lora_r to 0"):
        new_adapter(model, 4, 0)
