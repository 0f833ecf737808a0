"""Estimates the number of tokens of a text without a tokenizer."""

import re

CHARACTERS_A_TOKEN = 4  # in scripts written with spaces
IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def estimated_tokens(text: str) -> int:
    """One token for each ideograph and for every four other characters."""
    ideographs = len(IDEOGRAPH.findall(text))
    return ideographs + -(-(len(text) - ideographs) // CHARACTERS_A_TOKEN)
