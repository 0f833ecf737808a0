"""Splits texts of any script into words, for search, selection, comparison and measurement.

A script without spaces between words is split into overlapping pairs of characters instead, which needs no dictionary.
Korean is treated alike, because its words carry endings.
"""

from __future__ import annotations

import math
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any

UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\u30fc\u3005"
_SPACED = rf"[\p{{L}}\p{{M}}\p{{N}}_--[{UNSPACED}]]+"
_NAME_PARTS = rf"\p{{Lu}}?[\p{{Ll}}\p{{M}}]+|\p{{Lu}}+(?!\p{{Ll}})|\p{{N}}+|[\p{{Lo}}\p{{Lm}}\p{{M}}--[{UNSPACED}]]+"


def words_of(text: str, *, names: bool = False, singles: bool = False, most: int = sys.maxsize) -> list[str]:
    """The words of a text, ignoring case, in their order; at most about `most`.

    `names` splits them at underscores and inside camelCase. `singles` adds the single characters of a script without
    spaces, so that a query of one character finds a text.
    """
    found: list[str] = []
    for run, is_unspaced in _runs(text, names=names):
        if most <= 0:
            break
        most -= math.ceil(len(run) / 2) if is_unspaced else 1
        if not is_unspaced or len(run) == 1:
            found.append(run)
        else:
            found += [run[i : i + 2] for i in range(len(run) - 1)]
            found += run if singles else ""
    return found


def word_count(text: str) -> int:
    """The number of words in a text; two characters of a script without spaces count as one."""
    pattern = _patterns(names=False)[1]
    unspaced = sum(map(len, pattern.findall(text)))
    if not unspaced:
        return len(text.split())
    others = pattern.sub(" ", text).split()
    return sum(any(map(str.isalnum, word)) for word in others) + math.ceil(unspaced / 2)


def _runs(text: str, *, names: bool) -> Iterator[tuple[str, bool]]:
    """Each word, or run of a script without spaces, and which of the two it is."""
    whole, unspaced = _patterns(names=names)
    for match in whole.finditer(unicodedata.normalize("NFKC", text)):
        yield match[0].casefold(), unspaced.match(match[0]) is not None


@cache
def _patterns(*, names: bool) -> tuple[Any, Any]:
    import regex  # noqa: PLC0415 - loaded on demand; the standard library cannot tell scripts

    parts = _NAME_PARTS if names else _SPACED
    return regex.compile(rf"[{UNSPACED}]+|{parts}", regex.V1), regex.compile(rf"[{UNSPACED}]+", regex.V1)
