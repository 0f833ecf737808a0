"""Selects the passages of a web page that match a goal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from internalize.experience.words import words_of

PASSAGE = 400  # target length of a passage, characters


class Page(NamedTuple):
    """One page; `links` are (text, address). `cut`: the end is missing. `unread`: undecodable characters."""

    url: str
    title: str
    text: str
    links: tuple[tuple[str, str], ...] = ()
    cut: bool = False
    unread: int = 0


def link_lines(links: Sequence[tuple[str, str]], characters: int) -> str:
    """One line for each link, as many as fit, and the number of further links."""
    lines: list[str] = []
    for said, address in links:
        characters -= len(said) + len(address) + 3
        if characters < 0:
            return "\n".join([*lines, f"(and {len(links) - len(lines)} more links)"])
        lines.append(f"{said}: {address}")
    return "\n".join(lines)


def terms(text: str, *, indexed: bool = False) -> list[str]:
    """The words of a query, or of a text that queries can find."""
    return words_of(text.replace("_", " "), singles=indexed) or ["-"]


def passages(text: str) -> list[str]:
    """Lines joined or cut to passages of about PASSAGE characters."""
    pieces = [line[i : i + 2 * PASSAGE] for line in text.splitlines() for i in range(0, len(line), 2 * PASSAGE)]
    found: list[str] = []
    for piece in pieces:
        if found and len(found[-1]) + len(piece) < PASSAGE:
            found[-1] += f"\n{piece}"
        else:
            found.append(piece)
    return found


def pick(text: str, goal: str, characters: int) -> str:
    """The passages that match `goal` best (BM25), in page order, in at most `characters` characters."""
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
    return Bm25([terms(part, indexed=True) for part in parts]).ranked(terms(goal))


class Bm25:
    """Documents, given as their terms, ranked by BM25 against a query."""

    def __init__(self, documents: Sequence[list[str]]) -> None:
        import bm25s  # noqa: PLC0415 - half a second to import, and only needed here

        self._size, self._index = len(documents), bm25s.BM25()
        self._index.index(list(documents), show_progress=False)

    def ranked(self, query: Sequence[str]) -> list[int]:
        """Indices of documents, best first; ties in their order."""
        known = [term for term in query if term in self._index.vocab_dict]
        scores = self._index.get_scores(known) if known else [0.0] * self._size
        return sorted(range(self._size), key=lambda place: (-float(scores[place]), place))
