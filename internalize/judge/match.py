"""Equal text, after what carries no meaning is taken away.

Taken away: compatibility forms (NFKC), case, accents' encoding, articles before a word, punctuation, thousands
separators, the dots of abbreviations, spaces around operators and before units, a leading "the answer is". Kept: units
and currencies, signs, decimal points, accents themselves, the order of words, milli and mega, and marks that tell names
apart (C++, C#, AT&T, __init__). Left out: synonyms, dates and numbers in words (a model's work), equal numbers written
differently (maths.py). What must not change: `normalize` is idempotent, and an empty answer equals nothing.
"""

from __future__ import annotations

import re
import unicodedata

from internalize.records import Claim, Judgement

from .formula import Tree, read
from .notation import choice, final, untexted

_KEPT = frozenset("%#&@*/_.-")  # punctuation that can carry meaning; "." and "-" only where the rules below say so
_JOINED = frozenset("'\u2019\u2018`\u02bc\"\u201c\u201d")  # leaves no space behind: O'Brien = OBrien
_DASHES = dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"), "-")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_ABBREVIATION = re.compile(r"(?<!\w)(?:[^\W\d_]\.){2,}(?:[^\W\d_](?!\w))?")
_BARE_POINT = re.compile(r"(?<![\w.])\.(?=\d)")
_MILLI = re.compile(r"(?<=\d)(\s*)([mM])(?=(?:W|Pa|Hz|V|J|N)\b)")
_QUANTITY = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)(?=[^\W\d_])")
_TIGHT = re.compile(r"\s*([=<>+*/^])\s*|\s+(?=%)")
_MATHEMATICAL = re.compile(  # a mark that `normalize` would drop though it may be mathematics
    r"\\|[=<>^|]|[\d)\]}]!|\b[^\W\d_](?:!|'(?![^\W\d_]))|\b(?:\d+|[^\W\d_])[(\[{]|[)\]}][\w(\[{]|[(\[{]\s*-"
    r"|(?<![^\W\d_]{2})\s*-\s*(?=\S)|\S\s*-(?!\s*[^\W\d_]{2})"
)
ARTICLES = frozenset({"a", "an", "the"})


def normalize(text: str) -> str:
    """The text as compared. Idempotent."""
    text = _MILLI.sub(lambda found: found[1] + ("mega" if found[2] == "M" else "milli"), text)  # 5 mW is not 5 MW
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(_DASHES)
    text = _THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = _ABBREVIATION.sub(lambda found: found[0].replace(".", ""), text)
    text = _BARE_POINT.sub("0.", text)
    text = " ".join("".join(_mark(text, place) for place in range(len(text))).split())
    words = _QUANTITY.sub(r"\1 ", _TIGHT.sub(r"\1", text)).split()
    return " ".join(word for word, left in zip(words, range(len(words), 0, -1), strict=True) if _counts(word, left))


def _counts(word: str, left: int) -> bool:
    """Whether a word is no article; the last word (`left` = 1) never is one."""
    return left == 1 or word not in ARTICLES


def _mark(text: str, place: int) -> str:
    """What becomes of one character."""
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
    """Whether two answers are the same words, formula or choice, however a response introduces and sets them."""
    if same_choice(reference, answer):
        return True
    trees = read(reference), read(answer)
    if trees[0] and trees[1]:
        return unmarked(trees[0]) == unmarked(trees[1])
    texts = untexted(final(reference)), untexted(final(answer))
    if any(map(_MATHEMATICAL.search, texts)):
        return _marked(texts[0]) == _marked(texts[1])
    wanted, given = map(normalize, texts)
    return wanted == given if wanted else reference.strip() == answer.strip()  # nothing but marks: as they stand


def unmarked(tree: Tree) -> Tree:
    """A tree without whether its unit is a word."""
    return tree[:3] if tree[0] == "unit" else tree


def same_choice(reference: str, answer: str) -> bool:
    """Whether both are the same letter of a multiple-choice question; a bare letter is one only from A to D."""
    wanted, given = choice(final(reference)), choice(final(answer))
    if not wanted or not given or not wanted[0].isupper() or not (wanted[1] or wanted[0] in "ABCD"):
        return False
    return wanted[0] == given[0].upper()


def _marked(text: str) -> str:
    """A text with mathematics in it: every mark counts, and case counts in symbols."""
    text = unicodedata.normalize("NFKC", text).translate(_DASHES)
    text = re.sub(r"(?<![\\A-Za-z])[^\W\d_]{2,}", lambda found: found[0].casefold(), text)
    return re.sub(r"\s*([^\w\s])\s*", r"\1", " ".join(text.split()))


class ExactJudge:
    """Accepts an answer that is the reference, word for word, after `normalize`."""

    name = "exact"

    async def judge(self, claim: Claim) -> Judgement:
        """1 or 0; unscored only without a reference."""
        if not claim.reference.strip():
            return Judgement(score=None, judge=self.name, reason="there is no reference to compare with")
        return Judgement(score=float(same(claim.reference, claim.answer)), judge=self.name)
