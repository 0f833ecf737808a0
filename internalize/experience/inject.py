"""Experience into the prompt: none, global (in the system message) or step-wise (at the end of the last message).

Items are untrusted text: they are always shown as a list under one heading. An injection belongs to its step and is in
no later context.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from internalize.config.schema import InjectConfig
from internalize.interfaces import Selector
from internalize.records import Experience, Injection, Message, Pattern

from .pool import ExperiencePool
from .selectors import LexicalSelector

HEAD = "Experience:"
_LOG = logging.getLogger(__name__)


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
    def over(
        pool: ExperiencePool,
        config: InjectConfig,
        selector: Selector | None = None,
        fits: Callable[[str], bool] = lambda _: True,
    ) -> Injector:
        """The configured pattern over a pool; with an empty pool the pattern is `none`. `selector` None = lexical.

        `fits`: whether a text may stand in the system message. Of a pool that is too long for it the strongest items
        are shown, and a warning says so.
        """
        if config.pattern == "none" or not pool.items:
            return Injector()
        items = pool.items
        if config.pattern == "global" and not fits(_listed(items)):
            items = _strongest(items, fits)
            _LOG.warning(
                "the pool of %d items is too long for the system message: the %d strongest are shown; fewer items "
                "(extract.cap), a longer context (model.max_context) or inject.pattern = 'stepwise' help",
                len(pool.items), len(items),
            )  # fmt: skip
        if not items:
            return Injector(pool_version=pool.version)
        return Injector(config.pattern, items, config.k, selector or LexicalSelector(), pool.version)

    def global_injection(self) -> Injection | None:
        """The items for the system message (global), or None."""
        if self.pattern != "global":
            return None
        ids = tuple(item.id for item in self.items)
        return Injection(item_ids=ids, text=_listed(self.items), served_by="global")

    async def step_injection(self, messages: Sequence[Message]) -> Injection | None:
        """The items for one decision on the clean `messages` (step-wise), or None."""
        if self.pattern != "stepwise":
            return None
        ids, served_by = await self.selector.select(messages, self.items, self.k)
        texts = {item.id: item.text for item in self.items}
        if not ids:
            return None
        return Injection(item_ids=ids, text=render_items([texts[i] for i in ids]), served_by=served_by)


def _listed(items: Sequence[Experience]) -> str:
    return render_items([item.text for item in items])


def _strongest(items: Sequence[Experience], fits: Callable[[str], bool]) -> tuple[Experience, ...]:
    """As many items as fit, those with the greatest support times lift first, in the order of the pool."""
    ranked = sorted(range(len(items)), key=lambda place: -items[place].support * items[place].lift)

    def first(count: int) -> tuple[Experience, ...]:
        return tuple(items[place] for place in sorted(ranked[:count]))

    return first(bisect_right(range(1, len(items) + 1), 0, key=lambda count: not fits(_listed(first(count)))))
