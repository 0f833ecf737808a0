"""Fixtures every test may use. The torch ones load lazily, so that the light half is tested without torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    from tests.tiny import tiny_tokenizer  # noqa: PLC0415 - needs transformers

    return tiny_tokenizer()


@pytest.fixture
def model() -> LlamaForCausalLM:
    from tests.tiny import tiny_model  # noqa: PLC0415 - needs torch

    return tiny_model()
