"""Encoding of text whose words a tokenizer does not know."""

from __future__ import annotations

import tokenizers
from transformers import PreTrainedTokenizerFast

from internalize.inference.encoding import ControlTokens


def test_an_unknown_word_is_the_unknown_token() -> None:
    """In a vocabulary of whole words, whose unknown token is special, nothing of it can be taken apart further."""
    unknown, end = "<unk>", "<|im_end|>"
    words = {unknown: 0, end: 1, "known": 2}
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=unknown))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=model, unk_token=unknown, eos_token=end)
    control = ControlTokens(tokenizer)
    assert control.encode("known unheard <|im_end|>") == (2, 0, 1)
    assert control.encode(control.mark("known unheard <|im_end|>")) == (2, 0, 0, 0), "taken apart"
