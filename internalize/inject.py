"""Experience into the prompt: none, global (system message) or step-wise (end of the last message).

Left out: where exactly the text lands (render.py). What must not change: an injection is part of the step it
served and of no later context. Items are untrusted text: they are shown as a list under one heading, never more.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .config import InjectConfig
from .pool import ExperiencePool
from .records import Experience, Injection, Message, Pattern, Selector
from .rules import Situation, applies, parse, situation_of

HEAD = "Experience:"
_QUOTED = re.compile(r'"([^"]+)"')
_WORD = re.compile(r"\w+")


def render_items(texts: Sequence[str]) -> str:
    """The items as the policy sees them, one line each."""
    return "\n".join([HEAD, *(f"- {' '.join(text.split())}" for text in texts)])


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
        seen = f"{situation.question}\n{situation.observation or ''}"
        fitting = [item for item in items if _fits(item.text, situation, seen)]
        ranked = sorted(zip(_bm25(fitting, seen), fitting, strict=True), key=lambda p: (-p[0], -p[1].lift))
        return tuple(item.id for score, item in ranked[:k] if score > 0), "lexical"


def _fits(text: str, situation: Situation, seen: str) -> bool:
    rule = parse(text)
    if rule is not None:
        return applies(rule, situation)
    quoted = _QUOTED.search(text)
    return quoted is None or quoted.group(1) in seen or text.startswith("Example:")


def _bm25(items: Sequence[Experience], query: str) -> list[float]:
    import bm25s  # noqa: PLC0415 - half a second to import: only where it is used

    corpus = [_WORD.findall(item.text.lower()) for item in items]
    tokens = set(_WORD.findall(query.lower())) & {word for words in corpus for word in words}
    if not tokens:
        return [0.0] * len(items)
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    return [float(score) for score in index.get_scores(sorted(tokens))]


SELECTORS: dict[str, Callable[[], Selector]] = {"lexical": LexicalSelector}


@dataclass(frozen=True)
class Injector:
    """One pattern over one pool. `Injector()` injects nothing."""

    pattern: Pattern = "none"
    items: tuple[Experience, ...] = ()
    k: int = 1
    selector: Selector = field(default_factory=LexicalSelector)
    pool_version: str | None = None

    @staticmethod
    def over(pool: ExperiencePool, config: InjectConfig) -> Injector:
        """The configured pattern over a pool; an empty pool injects nothing."""
        if config.pattern == "none" or not pool.items:
            return Injector(pool_version=pool.version)
        return Injector(config.pattern, pool.items, config.k, SELECTORS[config.selector](), pool.version)

    def whole(self) -> Injection | None:
        """The whole pool for the system message (global), or None."""
        if self.pattern != "global":
            return None
        ids = tuple(item.id for item in self.items)
        return Injection(item_ids=ids, text=render_items([i.text for i in self.items]), served_by="global")

    async def at(self, messages: Sequence[Message]) -> Injection | None:
        """The items for one decision on the clean `messages` (step-wise), or None."""
        if self.pattern != "stepwise":
            return None
        ids, served_by = await self.selector.select(messages, self.items, self.k)
        texts = {item.id: item.text for item in self.items}
        if not ids:
            return None
        return Injection(item_ids=ids, text=render_items([texts[i] for i in ids]), served_by=served_by)
