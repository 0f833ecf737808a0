"""Measures how many items of a pool state a strategy, and how many contain details of single tasks.

The measures use English word lists and patterns: they can compare pools, but not judge a single item.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence

from internalize.records import Experience, Record
from internalize.records.messages import Share

# A strategy opens a sentence, or follows a name and a colon, with a condition or an instruction.
_CONDITION = r"when(?:ever)?|if|unless|before|after|once|until|while|for|at (?:the|each|every) (?:start|end|step)"
_DIRECTIVE = (
    r"always|never|avoid|prefer|do not|don't|first|instead|use|check|verify|compare|search|visit|read|follow|look|try"
    r"|start|stop|ask|answer|return|repeat|rephrase|make sure|keep|break|split|confirm|cross-check"
    r"|prioriti[sz]e|treat|expand|report|distinguish|frame|construct|combine|separate|validate|identify|target|refine"
    r"|extract|gather|focus|ensure|interpret|filter|consult|narrow|broaden|limit|trust|rely|consider|choose|select|open"
    r"|write|define|decompose|pivot|switch|reformulate|rewrite|retry|skip|wait|inspect|examine|analy[sz]e|review"
    r"|evaluate|double-check|cross-reference|cite|explore|apply|adapt|begin|reject|discard|ignore|include|exclude"
    r"|specify|restrict|seek|favou?r|fall back|go back|leverage"
)
_STRATEGY = re.compile(rf"(?:^|[.:;!?]\s+|\n\s*)(?:[-*]\s+)?(?:{_CONDITION}|{_DIRECTIVE})\b", re.IGNORECASE)
_URL = re.compile(r"https?://|www\.\w", re.IGNORECASE)
_LONG_NUMBER = re.compile(r"\d{4,}|\d{1,3}(?:,\d{3})+(?!\d)")
_QUOTED = re.compile(r'"([^"\n]+)"|“([^”\n]+)”|`([^`\n]+)`')
LONGEST_QUOTE = 3  # words; a longer quotation is text of one task, not a cue


class PoolHealth(Record):
    """Shares of items in [0, 1]; both are 0 for an empty pool."""

    items: int
    strategy_share: Share
    leak_share: Share


def states_strategy(text: str) -> bool:
    """Whether a text states a rule or an instruction ("When ..., ...", "Name: check ...")."""
    return _STRATEGY.search(text.strip()) is not None


def leaks(text: str, entities: Collection[str] = ()) -> bool:
    """Whether a text contains a URL, a number of four or more digits, a long quotation or one of `entities`."""
    return leaked(text, entities) is not None


def leaked(text: str, entities: Collection[str] = ()) -> tuple[str, str] | None:
    """Kind and text of the first detail of a single task in a text; None if there is none."""
    for kind, pattern in (("URL", _URL), ("long number", _LONG_NUMBER)):
        if match := pattern.search(text):
            return kind, text[match.start() :].split(maxsplit=1)[0] if kind == "URL" else match.group()
    quotes = ("".join(groups) for groups in _QUOTED.findall(text))
    if quote := next((quote for quote in quotes if len(quote.split()) > LONGEST_QUOTE), None):
        return "long quotation", quote
    name = _entity_in(text, entities)
    return ("task entity", name) if name else None


def strategy_share(items: Iterable[Experience]) -> float:
    """Share of items that state a strategy."""
    return _share(items, states_strategy)


def leak_share(items: Iterable[Experience], entities: Collection[str] = ()) -> float:
    """Share of items with details of single tasks; `entities` are names from tasks (pages, people)."""
    return _share(items, lambda text: leaks(text, entities))


def pool_health(items: Sequence[Experience], entities: Collection[str] = ()) -> PoolHealth:
    """The number of items and both shares of a pool."""
    return PoolHealth(items=len(items), strategy_share=strategy_share(items), leak_share=leak_share(items, entities))


def _share(items: Iterable[Experience], test: Callable[[str], bool]) -> float:
    results = [test(item.text) for item in items]
    return sum(results) / len(results) if results else 0.0


def _entity_in(text: str, entities: Collection[str]) -> str | None:
    lowered = text.lower()
    candidates = (name for name in entities if name and name.lower() in lowered)  # faster than the pattern alone
    return next((name for name in candidates if re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", lowered)), None)
