"""Undoes disguises of text, to compare it as a reader sees it; the result is never stored.

Look-alike letters (Unicode's table of confusables, from the package confusable-homoglyphs) become the letters they look
like; accents, invisible characters and variation selectors are removed; spaced-out letters are joined; digits within
words become the letters they stand for.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

# Invisible besides the categories Cc, Cf, Cs, Co and Cn: unusual blanks, and modifiers of other characters.
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180d\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef"
_INVISIBLE = re.compile(f"[{_BLANK}]")
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
_SPACED = re.compile(r"(?<![^\W_])[^\W\d_]([ .\-_*\u00b7|/\\~])[^\W\d_](?:\1[^\W\d_]){2,}(?![^\W_])")
_SEPARATOR = re.compile(r"[ .\-_*\u00b7|/\\~]")
_MIXED = re.compile(r"\b(?=\w*[a-z])(?=\w*[0-9@$])[\w@$]{2,}")
_LATIN = re.compile(r"\b(?:LATIN|REGIONAL INDICATOR SYMBOL)\b.*\b([A-Z])\b")
_DIGITS = str.maketrans("013457@$", "oieastas")


def invisible(text: str) -> str:
    """The first invisible character of `text`, except newline and tab; "" if there is none."""
    if text.isascii() and text.isprintable():
        return ""
    unseen = (c for c in text if c not in "\n\t" and (unicodedata.category(c) in _UNSEEN or _INVISIBLE.match(c)))
    return next(unseen, "")


def undisguised(text: str) -> str:
    """`text` in the letters that a reader sees."""
    if text.isascii() and text.isprintable():
        shown = text
    else:
        parted = unicodedata.normalize("NFKD", text)
        kept = (c for c in parted if not _INVISIBLE.match(c) and (c in "\n\t" or not _is_unseen(c)))
        shown = "".join(c if c.isascii() else _seen_as(c) for c in kept)
    return _SPACED.sub(lambda found: _SEPARATOR.sub("", found[0]), shown)


def without_digits(text: str) -> str:
    """`text` in lower case, with digits within words replaced by the letters they stand for (1gn0re)."""
    return _MIXED.sub(lambda found: found[0].translate(_DIGITS), text.lower())


def _is_unseen(character: str) -> bool:
    category = unicodedata.category(character)
    return category in _UNSEEN or category == "Mn"


def _seen_as(character: str) -> str:
    """The ASCII text that a character looks like, or the character."""
    if plain := _look_alikes().get(character):
        return plain
    found = _LATIN.search(unicodedata.name(character, ""))  # small capitals, squared letters, regional indicators
    return found[1].lower() if found else character


@lru_cache(maxsize=1)
def _look_alikes() -> dict[str, str]:
    """For characters that are not ASCII: the ASCII text they look like, of the same case if there is one."""
    from confusable_homoglyphs import confusables  # noqa: PLC0415 - reads a table of a megabyte

    found: dict[str, str] = {}
    for character, likes in confusables.confusables_data.items():
        if len(character) > 1 or character.isascii():
            continue
        plain = [one["c"] for one in likes if one["c"].isascii() and one["c"].isalnum()]
        found.update((character, one) for one in sorted(plain, key=lambda one: one.isupper() == character.isupper()))
        if found.get(character) == "l" and character.isupper():  # the table holds I and l for one
            found[character] = "I"
    return found
