"""Selection by words: BM25 among the items whose literal cue, if they have one, is present."""

from __future__ import annotations

import re
from collections.abc import Sequence

from internalize.experience.cues import GENERIC
from internalize.experience.rules import applies, parse, situation_of
from internalize.experience.words import words_of
from internalize.interfaces import CueExtractor, Situation
from internalize.records import Experience, Message

_QUOTED = re.compile(r'"([^"]+)"')


class LexicalSelector:
    """BM25 of the items against the question and the last results.

    A rule in the language of `rules.py` (with `cues`) is a candidate exactly where it applies. Another item is a
    candidate where some word of it and all its quotations are present. Ties go to the stronger, then the older item.
    """

    def __init__(self, cues: tuple[CueExtractor, ...] = GENERIC) -> None:
        self._cues = cues

    async def select(
        self, messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> tuple[tuple[str, ...], str]:
        """At most `k` ids, best first; none when nothing fits."""
        situation = situation_of(messages)
        seen = seen_text(situation)
        fitting = [item for item in items if fits(item.text, situation, self._cues)]
        ranked = sorted(zip(_bm25(fitting, seen), fitting, strict=True), key=lambda p: (-p[0], -p[1].lift))
        found = [item.id for score, item in ranked if score > 0 or parse(item.text, self._cues) is not None]
        return tuple(found[:k]), "lexical"


def seen_text(situation: Situation) -> str:
    """The text that the policy acts on: the question and the last results."""
    return f"{situation.question}\n{situation.observation or ''}"


def fits(text: str, situation: Situation, cues: tuple[CueExtractor, ...] = GENERIC) -> bool:
    """Whether the literal part of an item, if it has one, holds in the situation."""
    rule = parse(text, cues)
    if rule is not None:
        return applies(rule, situation)
    quoted = _QUOTED.search(text)
    return quoted is None or quoted.group(1) in seen_text(situation) or text.startswith("Example:")


def _bm25(items: Sequence[Experience], query: str) -> list[float]:
    import bm25s  # noqa: PLC0415 - takes half a second to import

    corpus = [words_of(item.text, singles=True) for item in items]
    tokens = set(words_of(query)) & {word for each in corpus for word in each}
    if not tokens:
        return [0.0] * len(items)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(sorted(tokens))]
