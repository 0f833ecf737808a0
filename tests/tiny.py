"""A tokenizer and a model small enough for every test: built from code, nothing is downloaded.

`tiny_tokenizer()` is a byte-level BPE of about 400 ids with a ChatML template, `<|im_end|>` ending a
turn; it can encode any text. `tiny_model()` is a random Llama of 2 layers with grouped-query
attention (4 heads on 2 key/value heads). Left out: any ability. The model's text is noise.
"""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Like several reasoning models' templates: the thinking of every turn but the newest is cut away.
STRIPS_THINKING = (
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{% if message['role'] == 'assistant' and '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CORPUS = [
    "search[json decoder] visit[json.decoder] answer[42] search[io open] visit[io.open] answer[mode]",
    "system user assistant tool question result page default value of parameter the class function",
    "Reply with one action. When the page only names an alias, visit the page that defines it.",
]


@cache
def _trained() -> str:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


def tiny_tokenizer(template: str = CHATML) -> PreTrainedTokenizerFast:
    """A fresh tokenizer with the given chat template."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token="<|im_end|>",  # noqa: S106 - a token of text, not a secret
        pad_token="<|endoftext|>",  # noqa: S106
        chat_template=template,
    )


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A random model in eval mode, fp32; the same seed gives the same weights."""
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        initializer_range=0.2,  # wide enough that next-token distributions differ clearly from uniform
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
