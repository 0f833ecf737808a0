"""How many tokens a text takes, where no tokenizer is at hand."""

import re

CHARACTERS_A_TOKEN = 4  # in scripts written with spaces
IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


def estimated_tokens(text: str) -> int:
    """An ideograph counts as one token, four other characters as another."""
    ideographs = len(IDEOGRAPH.findall(text))
    return ideographs + -(-(len(text) - ideographs) // CHARACTERS_A_TOKEN)
