"""A few rows of the matrix of model families: `python -m benchmarks.models` makes all of them."""

from __future__ import annotations

import pytest

from benchmarks.models import Found, measured, page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "engine", "scorer"),
    [
        ("deepseek_v3", "slots", "packed"),  # values of another width than keys
        ("kimi_linear", "plain", "forked"),
        ("camembert", "plain, one at a time", "forked, its own positions"),
        ("mamba", "plain, token by token", "forked, token by token"),
        ("minimax", "plain, token by token, placed", "forked, token by token, placed"),  # its cache miscounts
    ],
)
def test_each_path_is_exact_for_those_that_take_it(kind: str, engine: str, scorer: str) -> None:
    found = measured(kind, 0)
    assert (found.outcome, found.engine, found.scorer) == ("exact", engine, scorer), found


def test_a_model_without_a_cache_is_one_sentence() -> None:
    found = measured("openai-gpt", 4)
    assert (found.outcome, found.said) == ("refused", "OpenAIGPTLMHeadModel takes no cache")


def test_the_page_counts_every_case() -> None:
    text = page(["| a | full | slots | packed | 0 | - |"], [Found("exact"), Found("refused", "a sentence")])
    assert "2 cases (1\nfamilies" in text
    assert "1 exact, 1 refused" in text
