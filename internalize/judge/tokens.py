"""Splits a formula into tokens (numbers, letters, function names, operators) and provides a cursor over them."""

from __future__ import annotations

import re
from typing import NamedTuple

from .notation import TABLES

FUNCTIONS = frozenset(TABLES["functions"].split())
ACCENTS: dict[str, str] = TABLES["accents"]
_LETTERS = frozenset(TABLES["letters"].split())
_SKIPPED = frozenset(TABLES["skipped"].split())
_WORDS: dict[str, str] = TABLES["words"]
_OPERATORS: dict[str, str] = TABLES["operators"]
_OPENING, _CLOSING = ("(", "[", "{", "\\{"), (")", "]", "}", "\\}")
_STYLES = re.compile(
    r"\\(?:text(?:rm|bf|it|normal)?|math(?:rm|bf|it|sf|cal)|mbox|operatorname|boldsymbol|bm)\s*\{([^{}]*)\}"
)
_SPACED = r"\d{1,3}(?:(?:,\\!|\{,\})\d{3}(?!\d))+|[1-9]\d{0,2}(?:(?:\\[,;:! ]|~|[ ])\d{3}(?!\d|\s*/))+"
_COMMAS = r"[1-9]\d{0,2}(?:,\d{3}(?!\d))+(?!,\s*\d)"
_NUMBER = re.compile(rf"(?:{_SPACED}|\d+)(?:\.\d*)?|\.\d+")
_NUMBER_WITH_COMMAS = re.compile(rf"(?:{_COMMAS}|{_SPACED}|\d+)(?:\.\d*)?|\.\d+")
_REPEATING = re.compile(r"\\(?:overline|bar)\s*\{(\d+)\}|\\dot\s*\{(\d)\}|\((\d+)\)|(\.\.\.|\\[lc]?dots(?![a-zA-Z]))")
_EXPONENT = re.compile(r"[eE]([+-]?\d+)(?![\w.])")
_TOKEN = re.compile(
    r"(?P<space>\s+|\\[,;:! ]|~)|(?P<begin>\\begin\s*\{(\w+)\}(?:\s*\{[lcr| ]*\})?)|(?P<end>\\end\s*\{\w+\})"
    r"|(?P<command>\\[a-zA-Z]+|\\.)|(?P<word>[a-zA-Z]+)|(?P<op><=|>=|(?<=\s)!=|\*\*|==|.)",
    re.DOTALL,
)


class NoFormula(Exception):  # noqa: N818 - an outcome of parsing, not a failure
    """The text is not mathematics, or its notation is unknown or ambiguous."""


class Token(NamedTuple):
    """A token of kind "num", "sym", "fun" or "op". `run` identifies the word that a letter is part of."""

    kind: str
    text: str
    spaced: bool = False
    run: int = -1


def tokens(text: str) -> list[Token]:
    """The tokens of a formula. Raises NoFormula at anything else."""
    result: list[Token] = []
    place = depth = 0
    spaced = False
    while place < len(text):
        if re.match(r"\.?\d", text[place:]):
            commas = depth == 0 and not (result and result[-1].text == "," and not spaced)
            new, place = _number(text, place, commas=commas)
        elif style := _STYLES.match(text, place):
            new, place = _styled(style[1]), style.end()
        else:
            match = _TOKEN.match(text, place)
            assert match
            place = match.end()
            if match["space"] or match["command"] in _SKIPPED:
                spaced = True
                continue
            new = _word(match, text, spaced=spaced) if match["word"] else [_operator(match)]
        result += [new[0]._replace(spaced=spaced or new[0].spaced), *new[1:]]
        depth += (new[-1].text in _OPENING) - (new[-1].text in _CLOSING)
        spaced = False
    return result


def _number(text: str, place: int, *, commas: bool) -> tuple[list[Token], int]:
    """A number without thousands separators, such as 0.1(6) or 1.2e5, and the index after it."""
    match = (_NUMBER_WITH_COMMAS if commas else _NUMBER).match(text, place)
    assert match
    digits, place = re.sub(r"[^\d.]", "", match[0]), match.end()
    if "." in digits and (again := _REPEATING.match(text, place)):
        return [Token("num", _repeating(digits, again[1] or again[2] or again[3]))], again.end()
    if digits.endswith("."):
        raise NoFormula
    digits = f"0{digits}" if digits.startswith(".") else digits
    if exponent := _EXPONENT.match(text, place):
        return [Token("num", f"{digits}e{exponent[1]}")], exponent.end()
    if re.match(r"j(?![a-zA-Z])", text[place:]):  # Python's imaginary unit
        return [Token("num", digits), Token("sym", "i")], place + 1
    return [Token("num", digits)], place


def _repeating(digits: str, block: str | None) -> str:
    """A repeating decimal; without a block (0.166...), a group of digits that occurs repeatedly at the end repeats."""
    if block is None:
        tail = re.search(r"(\d+?)\1{2,}$|(\d{2,}?)\2$", digits.partition(".")[2])
        if not tail:
            raise NoFormula
        block, digits = tail[1] or tail[2], digits[: len(digits) - len(tail[0])]
    return f"{digits}({block})"


def _styled(content: str) -> list[Token]:
    r"""The tokens in \text{...}, \mathrm{...} and similar commands."""
    content = content.strip()
    if content in FUNCTIONS:
        return [Token("fun", content)]
    if content in _WORDS:
        return [Token("op", _WORDS[content], spaced=True)]
    if not re.fullmatch(r"[a-zA-Z]|[^a-zA-Z\\]+", content):
        raise NoFormula
    return tokens(content)


def _word(match: re.Match[str], text: str, *, spaced: bool) -> list[Token]:
    """The tokens of adjacent letters: a known name, or up to three variables. Raises NoFormula for longer words."""
    word, before, after = match["word"], text[: match.start()], text[match.end() :]
    if word in FUNCTIONS - {"Re", "Im", "arg", "tr"}:
        if word == "log" and after[:1].isdigit():
            raise NoFormula  # in log2(8) the 2 may be the base or the argument
        return [Token("fun", word)]
    if word in _WORDS:
        return [Token("op", _WORDS[word], spaced=True)]
    if word == "U" and re.search(r"[)\]}]\s*$", before) and re.match(r"\s*(?:\\left)?\\?[(\[{]", after):
        return [Token("op", "cup")]
    if word == "x" and (re.match(r"\s*10\s*(?:\^|\*\*)", after) or (spaced and re.match(r"\s+\d", after))):
        return [Token("op", "*")]
    if len(word) > 3 and word not in _LETTERS:
        raise NoFormula
    return [Token("sym", letter, run=match.start()) for letter in ([word] if word in _LETTERS else word)]


def _operator(match: re.Match[str]) -> Token:
    if match["begin"] or match["end"]:
        return Token("op", f"begin {match[3]}" if match["begin"] else "end")
    text = match["command"] or match["op"]
    name = text[1:] if text.startswith("\\") else ""
    kind = "sym" if name in _LETTERS else "fun" if name in FUNCTIONS else "op"
    return Token(kind, name if kind != "op" else _OPERATORS.get(text, text))


class Cursor:
    """A position in a list of tokens."""

    def __init__(self, token_list: list[Token]) -> None:
        self._tokens, self._place = token_list, 0

    @property
    def _token(self) -> Token:
        """The token at the position; an empty token after the last one."""
        return self._tokens[self._place] if self._place < len(self._tokens) else Token("", "")

    def _take(self, *texts: str) -> str:
        """Takes the next token if it is an operator among `texts`; returns its text, else ""."""
        token = self._token
        if token.kind == "op" and token.text in texts:
            self._place += 1
            return token.text
        return ""

    def _need(self, *texts: str) -> str:
        if not (text := self._take(*texts)):
            raise NoFormula
        return text

    def _any(self, *kinds: str) -> str:
        """Takes the next token, which must be of one of these kinds, and returns its text."""
        token = self._token
        if token.kind not in kinds:
            raise NoFormula
        self._place += 1
        return token.text

    def _braced(self, text: str) -> bool:
        """Takes the next tokens if they are `text`, with or without braces; returns whether they are."""
        inside = [token.text for token in self._tokens[self._place : self._place + 3]]
        length = 1 if inside[:1] == [text] else 3 if inside == ["{", text, "}"] else 0
        self._place += length
        return bool(length)

    def _raw(self) -> str:
        """Takes one token, or all tokens in braces, and returns their text."""
        if not self._take("{"):
            return self._any("num", "sym")
        parts = []
        while self._token.text not in {"{", "}", ""}:
            parts.append(self._any("num", "sym", "fun", "op"))
        self._need("}")
        return "".join(parts)
