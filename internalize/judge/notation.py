r"""Finds the answer in a response and normalizes its notation: boxes, Markdown, unicode, units and text in LaTeX.

Dropping a character that carries meaning (a sign, a bracket, a prime, a unit) would make different answers equal, so
only known decoration is removed.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from importlib.resources import files
from typing import Any, NamedTuple

TABLES: dict[str, Any] = tomllib.loads((files(__package__) / "notation.toml").read_text(encoding="utf-8"))
_SIGNS = {sign: latex for signs, latex in TABLES["signs"].items() for sign in signs}
_SMALL = re.compile("[²³¹⁰-ⁿˣʸ]+|[₀-₎ₐ-ₜᵢ]+")
_TEXT = re.compile(r"\\(?:text(?:rm|bf|it|sf|tt|normal)?|math(?:rm|sf|bf|it)|mbox|hbox|operatorname)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"\\[,;: ]|\\q?quad(?![a-zA-Z])|~")
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])\s*")
_BARE_BOX = re.compile(r"-?\d[\d.,]*\d|\\?[a-zA-Z]+|\S")
_BETWEEN_BOXES = re.compile(r"[\s,;$]*(?:\\text\s*\{\s*)?(?:and|or)?(?:\s*\})?[\s,;$]*")
_LEAD = re.compile(
    r"(?:^|\n)\W*?(?:so|thus|hence|therefore)?,?\s*(?:my |the )?(?:final |correct )?answer\W*"
    r"(?:\bis\b|\bwould be\b|[:=\n])(?:[\s:]|\*\*(?=\s))*(?=\S)|(?:^|\n)\s*####\s*(?=\S)",
    re.IGNORECASE,
)
_TAGGED = re.compile(r"<(answer|final_answer)>(.*?)</\1>", re.DOTALL | re.IGNORECASE)
_ABBREVIATED = re.compile(r"(?<!\w)(?:[^\W\d_]\.){2,}$")  # p.m., U.S.: its last stop belongs to it
_CHOICE = re.compile(r"(?:(?:option|choice|answer)\s+)?(\()?\s*([A-Ja-j])\s*(?(1)\)|[).:]?)", re.IGNORECASE)


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of each \boxed{...}, \fbox{...} or \boxed 2, without nested boxes."""
    spans: list[tuple[int, int, str]] = []
    for match in _BOX.finditer(text):
        if spans and match.start() < spans[-1][1]:
            continue
        if text[match.end() : match.end() + 1] != "{":
            if bare := _BARE_BOX.match(text, match.end()):
                spans.append((match.start(), bare.end(), bare[0]))
            continue
        depth = 0
        for place in re.finditer(r"(?<!\\)[{}]", text[match.end() :]):
            depth += 1 if place[0] == "{" else -1
            if not depth:
                end = match.end() + place.end()
                spans.append((match.start(), end, text[match.end() + 1 : end - 1].strip()))
                break
    return spans


def boxed(text: str) -> str | None:
    """The content of the last box, or of all boxes at the end that only "and", "or" or commas separate."""
    spans = boxes(text)
    if not spans:
        return None
    last = [spans[-1]]
    for box in reversed(spans[:-1]):
        if not _BETWEEN_BOXES.fullmatch(text[box[1] : last[0][0]]):
            break
        last.insert(0, box)
    return ", ".join(content for _, _, content in last)


def final(text: str) -> str:
    """The final answer of a response, without introduction and formatting."""
    if tagged := _TAGGED.findall(text):
        text = tagged[-1][1]
    while (inside := boxed(text)) is not None:
        text = inside
    if leads := list(_LEAD.finditer(text)):
        text = text[leads[-1].end() :]
    text = text.strip()
    while (bare := _undecorated(text)) != text:
        text = bare
    return text


def _undecorated(text: str) -> str:
    """The text without one layer of Markdown, dollar signs or a final stop."""
    for mark in ("```", "**", "`", "*"):
        inside = text[len(mark) : -len(mark)]
        if len(text) > 2 * len(mark) and text.startswith(mark) and text.endswith(mark) and mark not in inside:
            return inside.strip()
    if whole := _TEXT.fullmatch(text):
        return whole[1].strip()
    dollars = len(re.findall(r"(?<!\\)\$", text))
    if dollars and dollars % 2 == 0:
        text = re.sub(r"(?<!\\)\$", "", text)
    text = re.sub(r"(?<!\\)\\[()\[\]]", "", text)
    ends = text.endswith((".", ",", ";")) and not text.endswith("..") and not _ABBREVIATED.search(text)
    return (text[:-1] if ends else text).strip()


def choice(text: str) -> tuple[str, bool] | None:
    r"""The letter of a multiple-choice answer (A, (B), \text{(C)}, D.) and whether it has more than the bare letter."""
    match = _CHOICE.fullmatch(untexted(text).strip())
    return (match[2], match[0] != match[2] or match[0] != text.strip()) if match else None


def untexted(text: str) -> str:
    r"""The text with \text{...} and similar commands replaced by their content, and LaTeX spaces by spaces."""
    while (bare := _TEXT.sub(r"\1", text)) != text:
        text = bare
    return _SPACE.sub(" ", text)


def to_latex(text: str) -> str:
    """The text with unicode notation in LaTeX: signs, superscripts, fractions and Greek letters."""
    text = _SMALL.sub(_raised_or_lowered, text)
    text = re.sub("(?:\\d\u0305)+", lambda match: rf"\overline{{{match[0].replace(chr(0x305), '')}}}", text)
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = unicodedata.normalize("NFKC", "".join(_SIGNS.get(mark, mark) for mark in text))
    return "".join(_SIGNS.get(mark) or _greek(mark) for mark in text)


def _raised_or_lowered(match: re.Match[str]) -> str:
    is_lowered = unicodedata.decomposition(match[0][0]).startswith("<sub>")
    plain = unicodedata.normalize("NFKC", match[0]).replace("\N{MINUS SIGN}", "-")
    return f"{'_' if is_lowered else '^'}{{{plain}}}"


def _greek(mark: str) -> str:
    """The LaTeX command of a Greek letter; any other character is unchanged."""
    if not "\u0391" <= mark <= "\u03c9":
        return mark
    kind, _, name = unicodedata.name(mark, "").removeprefix("GREEK ").partition(" LETTER ")
    name = name.removeprefix("FINAL ").replace("LAMDA", "LAMBDA").lower()
    return f"\\{name.capitalize() if kind == 'CAPITAL' else name} " if name.isalpha() else mark


# -- units ---------------------------------------------------------------------------------------------------------

_UNITS = {alias: line.split()[0] for line in TABLES["units"].split("\n") for alias in line.split()}
_NO_UNIT = frozenset(TABLES["no_unit"].split())
_PREFIXED_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_POWERS = {"squared": "^2", "cubed": "^3"}
_UNIT_WORD = re.compile(r"°[CF]|[a-zA-Zµ]+\.?|[$€£¥₹¢/·]|\^\s*\{?\s*\d\s*\}?|\\cdot|\s+|(.)", re.DOTALL)
_TAIL = re.compile(r"(?<=[\d)}\]!\sa-zA-Z])(?=\\(?:text|mathrm|mbox|hbox))|(?<=[\d)}\]!\s])(?=[a-zA-Z$€£¥₹¢°]|\\\$)")
_CELSIUS = re.compile(r"(?:\^\s*\{?\s*\\circ\s*\}?|\\degree)\s*(?:\\(?:text|mathrm)\s*\{\s*)?([CF])\s*\}?$")
_CURRENCY = re.compile(r"([-+]?)\s*(\\?\$|€|£|¥|₹|\\pounds\b|\\euro\b)\s*(?=[-\d.])")
_NUMBER = re.compile(r"[-+]?[\d.,\s\\{}!/]*\d[\d.,\s\\{}!]*(?:frac\{\d+\}\{\d+\})?")


class Quantity(NamedTuple):
    """A formula, its unit ("" = none), whether the unit is a plain word, and the power of ten of a word ("million")."""

    formula: str
    unit: str = ""
    is_word: bool = False
    power: int = 0


def quantity(text: str, other_unit: str = "") -> Quantity:
    r"""Splits a formula from its unit: 5\text{ cm}, \$32.50, 12 square units, 3 km/h, 5 million.

    A bare letter may be a variable, so it is a unit only if `other_unit`, that of the other side, contains it.
    """
    if found := _CURRENCY.match(text):
        sign = {"\\pounds": "£", "\\euro": "€"}.get(found[2], found[2].lstrip("\\"))
        rest = quantity(text[found.end() :])
        return Quantity(found[1] + rest.formula, sign, power=rest.power) if rest.unit in {"", sign} else Quantity(text)
    text = _CELSIUS.sub(r"°\1", text)
    for place in (found.end() for found in _TAIL.finditer(text)):
        body, tail = text[:place].strip(), text[place:]
        inside = untexted(tail).strip().replace("\\$", "$")
        if not inside or not re.search(r"\w", body):
            continue
        if inside in TABLES["powers_of_ten"]:
            return Quantity(body, power=TABLES["powers_of_ten"][inside])
        any_noun = tail.startswith("\\") and bool(_NUMBER.fullmatch(body))
        if unit := _unit(inside, other_unit, in_text=tail.startswith("\\"), any_noun=any_noun):
            return Quantity(body, unit, is_word=tail[0].isalpha())
    return Quantity(text)


def _unit(text: str, other: str, *, in_text: bool, any_noun: bool) -> str:
    r"""The canonical unit that a text names; "" if there is none. With `any_noun`, any noun may be a unit."""
    parts: list[str] = []
    power = ""
    for match in _UNIT_WORD.finditer(text):
        word = match[0].strip().rstrip(".")
        name = _named(word, other, in_text=in_text or parts[-1:] == ["/"])
        if match[1]:
            return ""
        if word.lower() in _PREFIXED_POWERS:
            power = _PREFIXED_POWERS[word.lower()]
        elif word[:1] in set("^/·") or word in {"per", "\\cdot"}:
            parts.append({"per": "/", "\\cdot": "·"}.get(word, re.sub(r"[\s{}]", "", word)))
        elif word in _POWERS:
            parts.append(_POWERS[word])
        elif name or (any_noun and len(word) > 2 and word not in _NO_UNIT):
            parts.append((name or word) + power)
            power = ""
        elif word:
            return ""
    return "" if power or not parts or parts[0].startswith(("^", "/")) else "".join(parts)


def _named(word: str, other: str, *, in_text: bool) -> str:
    """The unit of a word or symbol; a bare letter is a unit only in a text command or if the other side has it."""
    if len(word) == 1 and word.isalpha():
        unit = _UNITS.get(word, "")
        return unit if in_text or unit in re.split(r"[\^/·\d]+", other) else ""
    forms = (word, word.lower(), word.lower().removesuffix("es"), word.lower().removesuffix("s"))
    return next((_UNITS[form] for form in forms if form in _UNITS and (len(form) > 1 or not form.isalpha())), "")
