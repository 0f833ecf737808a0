"""Fixtures every test may use. The torch ones load lazily, so that the light half is tested without torch."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

# One thread: the kill tests fork, and a fork of a process whose OpenMP threads run would wait for them for ever.
os.environ["OMP_NUM_THREADS"] = "1"

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
