"""What is shown of a web page: the passages that serve a goal."""

from __future__ import annotations

import re
from typing import NamedTuple

from internalize.environments.html import Html

PASSAGE = 400  # characters that a passage aims at
_MOST_LINKS = 40
_A_TOKEN = 4  # characters
_WORD = re.compile(r"[^\W_]+")
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")


class Page(NamedTuple):
    """One page; `links` are (text, address). `cut`: the end is missing."""

    url: str
    title: str
    text: str
    links: tuple[tuple[str, str], ...] = ()
    cut: bool = False


def page_of(url: str, found: Html, *, cut: bool = False) -> Page:
    """The page that was found at `url`."""
    return Page(url, found.title, found.text, found.links[:_MOST_LINKS], cut)


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
