"""Selection by words: BM25. An item that quotes words is a candidate only where these words are seen."""

from __future__ import annotations

import re
from collections.abc import Sequence

from internalize.experience.rules import Situation, applies, parse, situation_of
from internalize.records import Experience, Message

_QUOTED = re.compile(r'"([^"]+)"')
_WORD = re.compile(r"\w+")


class LexicalSelector:
    """BM25 of the items against the first user message and the last message.

    An item in the language of `rules.py` is a candidate only where its cue applies, another item that quotes words
    only where these words stand: both are meant literally. Ties go to the stronger, then the older item.
    """

    async def select(
        self, messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> tuple[tuple[str, ...], str]:
        """At most `k` ids, best first; none when nothing fits."""
        situation = situation_of(messages)
        seen = seen_text(situation)
        fitting = [item for item in items if fits(item.text, situation)]
        ranked = sorted(zip(_bm25(fitting, seen), fitting, strict=True), key=lambda p: (-p[0], -p[1].lift))
        return tuple(item.id for score, item in ranked[:k] if score > 0), "lexical"


def seen_text(situation: Situation) -> str:
    """What the policy has before its eyes: the question and the last observation."""
    return f"{situation.question}\n{situation.observation or ''}"


def fits(text: str, situation: Situation) -> bool:
    """Whether the literal part of an item, if it has one, holds here."""
    rule = parse(text)
    if rule is not None:
        return applies(rule, situation)
    quoted = _QUOTED.search(text)
    return quoted is None or quoted.group(1) in seen_text(situation) or text.startswith("Example:")


def _bm25(items: Sequence[Experience], query: str) -> list[float]:
    import bm25s  # noqa: PLC0415 - half a second to import: only where it is used

    corpus = [_WORD.findall(item.text.lower()) for item in items]
    tokens = set(_WORD.findall(query.lower())) & {word for words in corpus for word in words}
    if not tokens:
        return [0.0] * len(items)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(sorted(tokens))]
