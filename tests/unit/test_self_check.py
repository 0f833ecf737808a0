"""Models that the engine or the scorer would get wrong are refused with a figure, and none is altered by the check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import LlamaForCausalLM, PreTrainedModel

from internalize import loop
from internalize.config.compute import ComputeConfig
from internalize.config.distill import DistillConfig
from internalize.config.schema import Config, ModelConfig, load_config
from internalize.environments import registry
from internalize.errors import UserError
from internalize.inference.plain import PlainEngine
from internalize.inference.self_check import (
    Scores,
    check_scores,
    in_float32,
    ordinary_ids,
    plain_reference,
    require_reach,
)
from internalize.interfaces import Scorer
from internalize.records import DistillExample
from internalize.runs.store import read_run
from internalize.training.forked import ForkedScorer
from internalize.training.policy import LocalPolicy
from internalize.training.scoring import PACKED, example_logits
from internalize.training.selection import slot_engine
from internalize.training.teachers import References, build_training_set
from tests.command import Call, refused
from tests.tiny import tiny_model, tiny_tokenizer
from tests.trajectories import likely_example, logits_one_by_one

IDS = torch.arange(5, 25)[None]
FULL, LINEAR, SLIDING = "full_attention", "linear_attention", "sliding_attention"
COMMON = {
    "vocab_size": len(tiny_tokenizer()), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 2048,
    "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "num_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 24,
    "num_local_experts": 4,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": [LINEAR, FULL],
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0, "layer_types": [SLIDING, SLIDING]}
EXACT = {
    "Qwen3": {},
    "Mistral": {"sliding_window": None},
    "Mixtral": {"sliding_window": 4096},  # longer than the contexts, so that nothing is ever left out
    "Qwen2Moe": {},
}
WRONG = {
    "Qwen3Next": DELTA,
    "Lfm2": {"layer_types": ["conv", FULL], "conv_L_cache": 3},
    "Bamba": {"attn_layer_indices": [1], **MAMBA},
    "DiffLlama": {},
    "Qwen2Moe": WINDOW,
}
PLAIN = {
    "StableLm": {},
    "Nemotron": {},
    "GptOss": {"sliding_window": 8},
    "Gemma2": {"sliding_window": 8, "final_logit_softcapping": 3.0},
    "FalconH1": MAMBA | {"mamba_d_ssm": 64},
}


def made(family: str, settings: dict[str, object]) -> PreTrainedModel:
    config = getattr(transformers, f"{family}Config")(**COMMON | settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(transformers, f"{family}ForCausalLM")(config).eval()


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    for weight in model.parameters():
        weight.requires_grad = False
    return model


def policy(
    model: PreTrainedModel, lora_r: int = 4, engine: object = None, scorer: object = None, **named: object
) -> LocalPolicy:
    config = Config(model=ModelConfig(**named), compute=ComputeConfig(batch=4), distill=DistillConfig(lora_r=lora_r))
    return LocalPolicy(config, model, tiny_tokenizer(), engine, scorer)


def refusal(model: PreTrainedModel, **named: object) -> str:
    """The one sentence, about a model that gives the same logits afterwards and names the same attention."""
    with torch.no_grad():
        before, attention = model(IDS).logits, model.config._attn_implementation
        with pytest.raises(UserError) as caught:
            policy(model, lora_r=0, **named).check()
        assert torch.equal(model(IDS).logits, before)
    assert model.config._attn_implementation == attention
    assert "\n" not in str(caught.value)
    assert type(model).__name__ in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("lora_r", [0, 4])
@pytest.mark.parametrize("family", ["Llama", *EXACT])
def test_exact_families_pass_and_are_left_as_they_were(family: str, lora_r: int) -> None:
    model = tiny_model() if family == "Llama" else made(family, EXACT[family])
    weights = {name: weight.clone() for name, weight in model.named_parameters()}
    attention = model.config._attn_implementation
    checked = policy(model, lora_r)
    found = checked.check()
    assert found == checked.self_check
    assert max(found.logprobs, found.scores, found.gradients) < 3e-5
    assert model.config._attn_implementation == attention
    assert all(torch.equal(weight, weights[name.replace(".base_layer", "")])
               for name, weight in model.named_parameters() if "lora_" not in name)  # fmt: skip
    assert all(weight.grad is None for weight in model.parameters())


@pytest.mark.parametrize("lora_r", [0, 4])
@pytest.mark.parametrize("family", [*WRONG, *PLAIN])
def test_what_the_fast_paths_get_wrong_is_done_by_the_models_own_cache(family: str, lora_r: int) -> None:
    model = made(family, (WRONG | PLAIN)[family])
    attention = model.config._attn_implementation
    checked = policy(model, lora_r)
    found = checked.check()
    assert (found.engine, found.scorer) in {("plain", "forked"), ("plain", "packed")}
    assert max(found.logprobs, found.scores, found.gradients) < 5e-5
    assert model.config._attn_implementation == attention
    assert type(checked.engine) is PlainEngine


@pytest.mark.parametrize("family", [*WRONG, *PLAIN])
def test_the_fast_paths_alone_are_refused_with_the_figure(family: str) -> None:
    model = made(family, (WRONG | PLAIN)[family])
    says = refusal(model, engine=slot_engine, scorer=PACKED)
    if family == "Qwen2Moe":
        assert "beyond 8 it reads in another way (sliding_window)" in says
    elif family in WRONG:
        assert "differ from those of plain forward passes by" in says
        assert float(says.partition(" by ")[2].split()[0]) > 0.03


def logits_by(scorer: Scorer) -> Scores:
    return lambda model, example: example_logits(model, example, scorer)


@pytest.mark.parametrize("family", ["Qwen3Next", "StableLm", "Nemotron"])
def test_the_scorer_is_checked_by_itself_for_a_teacher(family: str) -> None:
    model = frozen(made(family, WRONG.get(family, {})))
    plain = plain_reference(model, ordinary_ids(model, tiny_tokenizer()))
    with pytest.raises(UserError, match=r"its scores differ from those of plain forward passes by \d"):
        check_scores(model, example_logits, plain)
    assert check_scores(model, logits_by(ForkedScorer()), plain)[1] == 0.0
    fine = frozen(tiny_model())
    assert check_scores(fine, example_logits, plain_reference(fine, range(5, 300)))[1] == 0.0


def test_a_model_that_teaches_is_checked_when_it_is_loaded(tmp_path: Path) -> None:
    other = made("Qwen3Next", WRONG["Qwen3Next"])
    other.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    config = DistillConfig(teacher="model", teacher_source=str(tmp_path))
    example = likely_example(other, 0)
    data = build_training_set(tiny_model(), [example], config, References(), 0)
    with torch.no_grad():
        logits = data.teacher_head(data.items[0].teacher_AD)
        torch.testing.assert_close(logits, logits_one_by_one(other, example), atol=1e-4, rtol=0)


def test_one_wrong_row_or_one_wrong_gradient_is_enough(model: LlamaForCausalLM) -> None:
    def row(model: torch.nn.Module, example: DistillExample) -> torch.Tensor:
        logits = example_logits(model, example).clone()
        logits[5] = logits[4]
        return logits

    def gradient(model: torch.nn.Module, example: DistillExample) -> torch.Tensor:
        logits = example_logits(model, example)
        return logits + 0.05 * (logits - logits.detach())  # the same values

    def nothing(model: torch.nn.Module, example: DistillExample) -> torch.Tensor:
        return example_logits(model, example) * torch.nan

    plain = plain_reference(model, range(5, 300))
    for scores, says in ((row, "its scores"), (gradient, r"its gradients .* by 0\.04"), (nothing, "by nan")):
        with pytest.raises(UserError, match=says):
            check_scores(model, scores, plain)


def test_fresh_weights_that_say_next_to_nothing_agree_with_nothing_either() -> None:
    """Log-probabilities of any two almost uniform models differ by little: the unit is the spread of the logits."""
    says = refusal(made("Qwen3Next", {**DELTA, "initializer_range": 0.012}), engine=slot_engine)
    assert "log-probabilities differ" in says


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rope_parameters": {"rope_type": "dynamic"}, "max_position_embeddings": 512}, "beyond 512 it reads in ano"),
        ({"sliding_window": 1024, "layer_types": [SLIDING, FULL]}, r"beyond 1024 .*\(sliding_window\)"),
        ({"sliding_window": 2048, "layer_types": [SLIDING, FULL]}, ""),
        ({"sliding_window": 1024, "layer_types": [FULL, FULL]}, ""),
        ({"attention_chunk_size": 1024}, r"\(attention_chunk_size\)"),
        ({"index_topk": 1024}, r"\(index_topk\)"),
    ],
)  # fmt: skip
def test_lengths_that_change_how_a_model_reads_are_compared_with_the_context(
    model: LlamaForCausalLM, settings: dict[str, object], says: str
) -> None:
    for key, value in settings.items():
        setattr(model.config, key, value)
    if not says:
        require_reach(model, 1536)
        return
    with pytest.raises(UserError, match=says):
        require_reach(model, 1536)
    if "rope" in str(settings):
        with pytest.raises(UserError, match=says):
            require_reach(model, 1536, windows=False)
    else:
        require_reach(model, 1536, windows=False)


def test_the_fast_paths_are_for_contexts_inside_the_window() -> None:
    model = made("Mistral", {"sliding_window": 1024})
    found = policy(model, 0, max_context=1025).check()
    assert (found.engine, found.scorer) == ("plain", "forked")
    says = refusal(model, engine=slot_engine, scorer=ForkedScorer(), max_context=1025)
    assert "set model.max_context to 1024 or less" in says
    found = policy(model, 0, max_context=1024).check()
    assert (found.engine, found.scorer) == ("slots", "packed")


@pytest.mark.parametrize("family", ["Qwen3", "Qwen3Next", "Mixtral"])
def test_weights_in_bfloat16_are_compared_in_float32_and_given_back(family: str) -> None:
    """Rounding would hide what is wrong: an expert that a router takes instead looks like a mistake."""
    model = made(family, (WRONG | EXACT)[family]).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = policy(model, lora_r=0).check()
    assert max(found.logprobs, found.scores, found.gradients) < 5e-5
    assert found.engine == ("plain" if family in WRONG else "slots")
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype == torch.bfloat16
        assert torch.equal(tensor, before[name])


def test_where_memory_is_short_weights_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model().to(torch.bfloat16)
    real, calls = torch.Tensor.float, []

    def full(tensor: torch.Tensor) -> torch.Tensor:
        calls.append(tensor)
        if len(calls) == 3:
            raise torch.OutOfMemoryError
        return real(tensor)

    monkeypatch.setattr(torch.Tensor, "float", full)
    with in_float32(model) as done:
        assert not done
        assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


SET = ("iterations=1", "env.name=toy", "rollout.tasks=1", "rollout.max_steps=1", "rollout.max_action_tokens=2",
       "distill.epochs=0", "evaluate.tasks=1", "evaluate.final_tasks=1")  # fmt: skip


def test_run_json_holds_the_first_check(folder: Path, tmp_path: Path) -> None:
    tiny_model().save_pretrained(folder)
    config = load_config(None, [*SET, f"model.source={folder}"])
    loop.run(config, tmp_path / "run")
    found = read_run(tmp_path / "run").self_check
    assert found is not None
    assert 0 < found.logprobs < 1e-4
    assert (found.engine, found.scorer) == ("slots", "packed")
    loop.run(config, tmp_path / "run", resume=True)
    assert read_run(tmp_path / "run").self_check == found


def test_the_command_refuses_before_anything_is_written(folder: Path, tmp_path: Path, call: Call) -> None:
    """Angles that change with the longest context: no cache holds those that were right before."""
    made("Qwen3", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4},
                   "max_position_embeddings": 512}).save_pretrained(folder)  # fmt: skip
    (tmp_path / "recipe.toml").write_text(f"[model]\nsource = {json.dumps(str(folder))}\n")
    ended = call("run", tmp_path / "recipe.toml", "--out", "run", *[part for s in SET for part in ("--set", s)])
    assert refused(
        ended, "Qwen3ForCausalLM cannot be used with contexts of 1536 tokens", "set model.max_context to 512 or less"
    )
    assert not (tmp_path / "run").exists()
