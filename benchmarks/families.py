"""Tiny random models of the families in the installed transformers: every size small, every window and chunk crossed.

`CHANGES` are what a family needs beside `SIZES`: a mixture of its kinds of layers, or numbers that fit each other.
`LEFT_OUT` are types that are no causal language model of text alone, with the reason.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_WIDTH = dict.fromkeys(
    ("hidden_size", "d_model", "n_embd", "n_embed", "dim", "embedding_size", "word_embed_proj_dim"), 32
)
_INNER = dict.fromkeys(
    ("intermediate_size", "ffn_dim", "n_inner", "d_ff", "decoder_ffn_dim", "encoder_ffn_dim", "ffn_hidden_size"), 48
)
_LAYERS = dict.fromkeys(
    ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"), 4
)
_HEADS = dict.fromkeys(
    ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads"), 4
)
_LENGTH = dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length"), 2048)
_EXPERTS = dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4)
_CHOSEN = dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_k", "top_k_experts", "moe_topk"), 2)
_EXPERT_WIDTH = dict.fromkeys(
    ("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size", "shared_intermediate_size",
     "shared_expert_size", "expert_intermediate_size"), 24,
)  # fmt: skip
_WINDOWS = dict.fromkeys(("sliding_window", "attention_window_size", "attention_chunk_size", "window_size"), 8)
_MAMBA = {
    "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_expand": 2,
    "mamba_d_ssm": 64,
    "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8, "state_size": 8, "expand": 2, "n_groups": 1,
}  # fmt: skip
_DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip
_LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
_INDEX = {"index_topk": 2048, "index_n_heads": 2, "index_head_dim": 16}
SIZES: dict[str, Any] = {
    "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, "init_std": 0.2, "encoder_layers": 2,
    "is_decoder": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1,
    **_WIDTH, **_INNER, **_LAYERS, **_HEADS, **_LENGTH, **_EXPERTS, **_CHOSEN, **_EXPERT_WIDTH, **_WINDOWS, **_MAMBA,
    **_DELTA, **_LATENT, **_INDEX,
}  # fmt: skip
_HALF = ["linear_attention", "full_attention"] * 2
_MLA = {"num_key_value_heads": 4}
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa",
                     "longcat_flash", "minicpm3", "youtu"), _MLA),
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "mamba_dt_rank": 4},
    "granitemoehybrid": {"layer_types": ["mamba", "attention", "mamba", "attention"]},
    "codegen": {"rotary_dim": 8}, "gptj": {"rotary_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "mamba2": {"num_heads": 8},
    "kimi_linear": _MLA | {"linear_num_heads": 4, "linear_head_dim": 8, "layer_types": _HALF},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "bailing_hybrid": _MLA | {"layer_types": _HALF},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2, "initializer_range": 0.05},  # it magnifies rounding
    "zaya": {"num_experts_per_tok": 1},
    "dots3_note_text": _MLA | {"ngram_vocab_size": 400},
    "minimax": {"layer_types": _HALF, "sliding_window": None},  # as all of its models
    "recurrent_gemma": {"num_hidden_layers": 3},
    "gemma3n_text": {"num_kv_shared_layers": 0, "vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8},
    "gemma4_text": {"vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8},
    "gemma4_unified_text": {"vocab_size_per_layer_input": 400, "hidden_size_per_layer_input": 8},
}  # fmt: skip
# What people train small agents with.
NAMED = (
    "qwen3_5_text", "gpt_oss", "falcon_h1", "qwen3_5_moe_text", "qwen3", "qwen3_moe", "qwen3_next", "gemma2",
    "gemma3_text", "gemma4_text", "llama", "glm", "glm4", "glm4_moe", "granite", "granitemoehybrid", "lfm2", "lfm2_moe",
    "nemotron", "nemotron_h", "deepseek_v3", "olmo3", "olmo_hybrid", "kimi_linear",
)  # fmt: skip
TEMPLATES = {  # of families: their template in docs/templates.md
    "cohere": "cohere", "cohere2": "cohere2", "deepseek_v3": "deepseekv3", "gemma": "gemma",
    "gemma2": "gemma", "gemma3_text": "gemma3", "gemma4_text": "gemma4_v5",
    "glm4_moe": "glm4moe", "gpt_oss": "gptoss",
    "lfm2": "lfm2_2_5_v2", "lfm2_moe": "lfm2_v2", "llama": "llama3_2", "nemotron_h": "nemotron_3_nano",
    "phi3": "phi3_5", "qwen2": "qwen2_5", "qwen3": "qwen3", "qwen3_moe": "qwen3_instruct_2507",
    "qwen3_5": "qwen3_6", "qwen3_5_text": "qwen3_6", "qwen3_5_moe": "qwen3_6", "qwen3_5_moe_text": "qwen3_6",
    "granite": "ibm-granite-granite-3.3-2B-Instruct", "granitemoehybrid": "ibm-granite-granite-4.0",
    "minimax": "MiniMax-M1", "minimax_m2": "MiniMax-M2", "mistral": "Mistral-Small-3.2-24B-Instruct-2506",
    "ministral3": "mistralai-Ministral-3-14B-Reasoning-2512", "apertus": "Apertus-8B-Instruct",
    "seed_oss": "ByteDance-Seed-OSS", "smollm3": "HuggingFaceTB-SmolLM3-3B", "cohere2_moe": "Cohere2MoE",
    "glm4_moe_lite": "GLM-4.7-Flash", "laguna": "poolside-Laguna-XS-2.1", "hy_v3": "tencent-Hy3",
    "solar_open": "upstage-Solar-Open-100B", "minimax_m3_vl_text": "MiniMax-M3",
    "deepseek_v32": "deepseek-ai-DeepSeek-V3.2", "deepseek_v4": "deepseek-ai-DeepSeek-V4",
}  # fmt: skip
_DECODER = "the decoder of an encoder-decoder, which acts on nothing without its encoder"
_PICTURES = "its vision or speech part cannot be made small"
LEFT_OUT: dict[str, str] = {
    **dict.fromkeys(
        ("bart", "bigbird_pegasus", "blenderbot", "blenderbot-small", "marian", "mbart", "musicgen", "musicgen_melody",
         "mvp", "pegasus", "plbart", "prophetnet", "trocr", "whisper", "moshi", "reformer"), _DECODER,
    ),
    **dict.fromkeys(
        ("git", "got_ocr2", "moss_transcribe_diarize", "phi4_multimodal", "gemma3n", "gemma3", "gemma4"), _PICTURES,
    ),
    **dict.fromkeys(
        ("gemma4_assistant", "gemma4_unified_assistant", "dots3_note"), "drafts for another model or wraps another",
    ),
    "zamba": "transformers cannot build it with few layers", "dbrx": "transformers cannot build it from its config",
    "qwen4_exp": "its config has no defaults", "qwen4_exp_text": "its config has no defaults",
    "cohere_compass_text": "an encoder", "xlstm": "its kernel wants sizes of its own",
    "blt": "reads bytes in patches", "xmod": "wants a language a call", "roc_bert": "wants pronunciations and shapes",
    "cpmant": "wants segments and lengths",
}  # fmt: skip


def tiny_config(kind: str, words: int = 400, **changes: Any) -> Any:
    """The config of a model type with everything small."""
    return _tiny(CONFIG_MAPPING[kind], {"vocab_size": words, **CHANGES.get(kind, {}), **changes})


def _tiny(config_class: Any, changes: dict[str, Any]) -> Any:
    known = config_class().to_dict()
    aliases = getattr(config_class, "attribute_map", {})
    values = {
        key: value for key, value in SIZES.items() if (key in known or key in aliases) and aliases.get(key) not in SIZES
    }
    for name in config_class.sub_configs:
        part = getattr(config_class(), name, None)
        if part is not None and hasattr(part, "num_hidden_layers") and name in {"text_config", "decoder"}:
            values[name] = _tiny(type(part), {**changes, **CHANGES.get(part.model_type, {})}).to_dict()
    return config_class(**values | changes)


def tiny(kind: str, words: int = 400, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a type, in evaluation mode, of float32 weights."""
    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.simplefilter("ignore")
        transformers.utils.logging.set_verbosity_error()
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(tiny_config(kind, words, **changes)).eval()
    return model


def kinds() -> list[str]:
    """Every type of causal language model that is not left out."""
    return [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind not in LEFT_OUT]
