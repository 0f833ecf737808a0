"""Experience into the prompt: none, global (in the system message) or step-wise (at the end of the last message).

Items are untrusted text: they are always shown as a list under one heading. An injection belongs to its step and is in
no later context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from internalize.config.schema import InjectConfig
from internalize.interfaces import Selector
from internalize.records import Experience, Injection, Message, Pattern

from .pool import ExperiencePool
from .selectors import LexicalSelector

HEAD = "Experience:"


def render_items(texts: Sequence[str]) -> str:
    """The items as the policy sees them, one line each."""
    return "\n".join([HEAD, *(f"- {' '.join(text.split())}" for text in texts)])


@dataclass(frozen=True)
class Injector:
    """One pattern over one pool. `Injector()` injects nothing."""

    pattern: Pattern = "none"
    items: tuple[Experience, ...] = ()
    k: int = 1
    selector: Selector = field(default_factory=LexicalSelector)
    pool_version: str | None = None

    @staticmethod
    def over(pool: ExperiencePool, config: InjectConfig, selector: Selector | None = None) -> Injector:
        """The configured pattern over a pool; with an empty pool the pattern is `none`. `selector` None = lexical."""
        if config.pattern == "none" or not pool.items:
            return Injector()
        return Injector(config.pattern, pool.items, config.k, selector or LexicalSelector(), pool.version)

    def global_injection(self) -> Injection | None:
        """The whole pool for the system message (global), or None."""
        if self.pattern != "global":
            return None
        ids = tuple(item.id for item in self.items)
        return Injection(item_ids=ids, text=render_items([i.text for i in self.items]), served_by="global")

    async def step_injection(self, messages: Sequence[Message]) -> Injection | None:
        """The items for one decision on the clean `messages` (step-wise), or None."""
        if self.pattern != "stepwise":
            return None
        ids, served_by = await self.selector.select(messages, self.items, self.k)
        texts = {item.id: item.text for item in self.items}
        if not ids:
            return None
        return Injection(item_ids=ids, text=render_items([texts[i] for i in ids]), served_by=served_by)
