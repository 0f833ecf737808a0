"""Web pages as text: a title, paragraphs, links with absolute addresses; the passages that serve a goal.

Left out: scripts, forms, images, layout. What must not change: text of a page is data, and nothing in it is followed
but the links that the policy asks for.
"""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin

PASSAGE = 400  # characters that a passage aims at
_MOST_LINKS = 40
_A_TOKEN = 4  # characters
_INLINE = frozenset({"a", "b", "i", "em", "strong", "span", "code", "small", "sub", "sup", "u", "abbr", "mark", "font"})
_CELLS = frozenset({"td", "th"})
_HIDDEN = frozenset({"script", "style", "noscript", "template", "svg"})
_WORD = re.compile(r"[^\W_]+")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Page(NamedTuple):
    """One page; `links` are (text, address). `cut`: the end is missing."""

    url: str
    title: str
    text: str
    links: tuple[tuple[str, str], ...] = ()
    cut: bool = False


class _Reader(HTMLParser):
    def __init__(self, url: str) -> None:
        super().__init__()
        self.url, self.title, self.pieces = url, "", [""]
        self.links: dict[str, str] = {}
        self._hidden, self._in_title, self._anchor = 0, False, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_title = self._in_title or tag == "title"
        self._hidden += tag in _HIDDEN
        self.pieces.append(" " if tag in _CELLS else "" if tag in _INLINE else "\n")
        given = dict(attrs)
        if tag == "base" and given.get("href"):
            self.url = _joined(self.url, given["href"] or "")
        if tag == "a" and given.get("href"):
            self._anchor = urldefrag(_joined(self.url, given["href"] or ""))[0]
            self.links.setdefault(self._anchor, "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "title":
            self._in_title = False
        self._hidden = max(0, self._hidden - (tag in _HIDDEN))
        self.pieces.append(" " if tag in _CELLS else "" if tag in _INLINE else "\n")
        if tag == "a":
            self._anchor = ""

    def handle_data(self, data: str) -> None:
        if self._in_title:
            self.title += data
        elif not self._hidden:
            self.pieces.append(data)
            if self._anchor:
                self.links[self._anchor] += data


def _joined(base: str, link: str) -> str:
    try:
        return urljoin(base, link.strip())
    except ValueError:  # an address that is none
        return base


def read_html(html: str, url: str, *, cut: bool = False) -> Page:
    """The page of an HTML text found at `url`."""
    reader = _Reader(url)
    try:
        reader.feed(html)
        reader.close()
    except AssertionError:  # of Python 3.11 and 3.12, for sections such as <![foo[
        cut = True
    links = [(" ".join(text.split()) or address, address) for address, text in reader.links.items()]
    kept = tuple(link for link in links if not link[1].startswith(("javascript:", "mailto:", "data:", "tel:")))
    return Page(url, " ".join(reader.title.split()), _tidy("".join(reader.pieces)), kept[:_MOST_LINKS], cut)


def read_plain(text: str, url: str, *, cut: bool = False) -> Page:
    """The page of a plain text."""
    return Page(url, "", _tidy(text), (), cut)


def _tidy(text: str) -> str:
    lines = (" ".join(line.split()) for line in text.splitlines())
    return "\n".join(line for line in lines if line)


def terms(text: str) -> list[str]:
    """Words in lower case; scripts written without spaces by the character."""
    found = _WORD.findall(_IDEOGRAPH.sub(r" \g<0> ", text.casefold()))
    return found or ["-"]


def tokens_of(text: str) -> int:
    """About how many tokens a text takes: an ideograph is one, of other characters four are."""
    ideographs = len(_IDEOGRAPH.findall(text))
    return ideographs + -(-(len(text) - ideographs) // _A_TOKEN)


def passages(text: str) -> list[str]:
    """Lines put together, or cut, to about PASSAGE characters."""
    pieces = [line[i : i + 2 * PASSAGE] for line in text.splitlines() for i in range(0, len(line), 2 * PASSAGE)]
    found: list[str] = []
    for piece in pieces:
        if found and len(found[-1]) + len(piece) < PASSAGE:
            found[-1] += f"\n{piece}"
        else:
            found.append(piece)
    return found


def pick(text: str, goal: str, characters: int) -> str:
    """The passages that have most to do with `goal` (BM25), in the order of the page, at most so many characters."""
    if len(text) <= characters:
        return text
    parts = passages(text)
    chosen: set[int] = set()
    room = characters
    for place in _ranked(parts, goal):
        if len(parts[place]) + 1 <= room:
            chosen.add(place)
            room -= len(parts[place]) + 1
    if not chosen:
        return text[:characters]
    shown = ""
    for place in sorted(chosen):
        shown += ("\n" if not shown or place - 1 in chosen else "\n...\n") + parts[place]
    return shown.removeprefix("\n")[:characters]


def _ranked(parts: list[str], goal: str) -> list[int]:
    """Places of passages, best first; those without a word of the goal in page order at the end."""
    if not goal.strip():
        return list(range(len(parts)))
    return best([terms(part) for part in parts], terms(goal))


def best(documents: list[list[str]], query: list[str]) -> list[int]:
    """Places of documents by BM25, best first; equal ones in their order."""
    import bm25s  # noqa: PLC0415 - half a second to import, and only needed here

    index = bm25s.BM25()
    index.index(documents, show_progress=False)
    known = [term for term in query if term in index.vocab_dict]
    scores = index.get_scores(known) if known else [0.0] * len(documents)
    return sorted(range(len(documents)), key=lambda place: (-float(scores[place]), place))
