"""Compares answers as text, after normalizing differences that carry no meaning.

Normalized: compatibility forms and the encoding of accents (NFKC), case, articles, punctuation, thousands separators,
dots of abbreviations, spaces around operators and before units, and introductions such as "the answer is". Preserved:
units, currencies, signs, decimal points, accents, word order, milli and mega, and characters that distinguish names
(C++, C#, AT&T, __init__). Synonyms, dates and numbers in words need a model as a judge; maths.py compares numbers.
"""

from __future__ import annotations

import re
import unicodedata

from internalize.records import Claim, Judgement

from .formula import Tree, read
from .notation import choice, final, untexted

_KEPT = frozenset("%#&@*/_.-")  # punctuation that can carry meaning; `_mark` restricts "." and "-"
_JOINED = frozenset("'\u2019\u2018`\u02bc\"\u201c\u201d")  # deleted without leaving a space: O'Brien = OBrien
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"), "-")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_ABBREVIATION = re.compile(r"(?<!\w)(?:[^\W\d_]\.){2,}(?:[^\W\d_](?!\w))?")
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_MILLI = re.compile(r"(?<=\d)(\s*)([mM])(?=(?:W|Pa|Hz|V|J|N)\b)")
_QUANTITY = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?=[^\W\d_])")
_TIGHT = re.compile(r"\s*([=<>+*/^])\s*|\s+(?=%)")
_MATHEMATICAL = re.compile(  # a character that `normalize` would drop although it may be mathematics
    r"\\|[=<>^|]|[\d)\]}]!|\b[^\W\d_](?:!|'(?![^\W\d_]))|\b(?:\d+|[^\W\d_])[(\[{]|[)\]}][\w(\[{]|[(\[{]\s*-"
    r"|(?<![^\W\d_]{2})\s*-\s*(?=\S)|\S\s*-(?!\s*[^\W\d_]{2})"
)
ARTICLES = frozenset({"a", "an", "the"})


def normalize(text: str) -> str:
    """The normalized text that is compared. The function is idempotent."""
    text = _MILLI.sub(lambda match: match[1] + ("mega" if match[2] == "M" else "milli"), text)  # 5 mW is not 5 MW
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASHES)
    text = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), text)
    text = _ABBREVIATION.sub(lambda match: match[0].replace(".", ""), text)
    text = _BARE_POINT.sub("0.", text)
    text = "".join(_mark(text, place) for place in range(len(text)))
    text = " ".join(
        unicodedata.normalize("NFC", text).split()
    )  # a deleted mark may have kept an accent from its letter
    words = _QUANTITY.sub(r"\1 ", _TIGHT.sub(r"\1", text)).split()
    return " ".join([*(word for word in words[:-1] if word not in ARTICLES), *words[-1:]])  # the last is no article


def _mark(text: str, place: int) -> str:
    """The replacement of one punctuation mark; any other character stays."""
    mark = text[place]
    if mark in _JOINED:
        return ""
    if not unicodedata.category(mark).startswith("P"):
        return mark
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if mark == ".":
        return mark if before.isalnum() and after.isalnum() else " "
    if mark == "-":
        return mark if after.isdigit() and not before.isalnum() else " "
    return mark if mark in _KEPT else " "


def same(reference: str, answer: str) -> bool:
    """Whether two answers are the same text, formula or choice, apart from introductions and markup."""
    if same_choice(reference, answer):
        return True
    trees = read(reference), read(answer)
    if trees[0] and trees[1]:
        return unmarked(trees[0]) == unmarked(trees[1])
    texts = untexted(final(reference)), untexted(final(answer))
    if any(map(_MATHEMATICAL.search, texts)):
        return _marked(texts[0]) == _marked(texts[1])
    expected, actual = map(normalize, texts)
    return (
        expected == actual if expected else reference.strip() == answer.strip()
    )  # only punctuation: compare it unchanged


def unmarked(tree: Tree) -> Tree:
    """The tree without the flag that says whether its unit is a word."""
    return tree[:3] if tree[0] == "unit" else tree


def same_choice(reference: str, answer: str) -> bool:
    """Whether both are the same letter of a multiple-choice question; an unmarked letter must be one of A to D."""
    expected, actual = choice(final(reference)), choice(final(answer))
    if not expected or not actual or not expected[0].isupper() or not (expected[1] or expected[0] in "ABCD"):
        return False
    return expected[0] == actual[0].upper()


def _marked(text: str) -> str:
    """The normalized form of text with mathematics: all punctuation counts, and so does the case of symbols."""
    text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    text = re.sub(r"(?<![\\A-Za-z])[^\W\d_]{2,}", lambda match: match[0].casefold(), text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))


class ExactJudge:
    """Accepts an answer that equals the reference as text, formula or choice."""

    name = "exact"

    async def judge(self, claim: Claim) -> Judgement:
        """1 or 0; unscored if there is no reference."""
        if not claim.reference.strip():
            return Judgement(score=None, judge=self.name, reason="there is no reference to compare with")
        return Judgement(score=float(same(claim.reference, claim.answer)), judge=self.name)
