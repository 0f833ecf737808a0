"""Placebo experience, which looks like a pool's but has other content, to measure the effect of experience itself.

Only for experiments: `inject.shown` names the items shown in place of the run's own pool. The pool itself and its
extraction do not change.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from internalize.errors import UserError
from internalize.interfaces import CueExtractor
from internalize.records import Experience

from .pool import load_pool
from .rules import Rule, parse, phrase

SHUFFLED = "shuffled"


def instead_of(
    items: Sequence[Experience], shown: str, seed: int, cues: tuple[CueExtractor, ...]
) -> tuple[Experience, ...]:
    """The items shown for `items`: themselves (""), their rules with each other's actions, or those of a pool file.

    Raises DataError for a file that is no pool, UserError for shuffled items that are no rules.
    """
    if not shown:
        return tuple(items)
    return shuffled(items, seed, cues) if shown == SHUFFLED else load_pool(Path(shown)).items


def shuffled(items: Sequence[Experience], seed: int, cues: tuple[CueExtractor, ...]) -> tuple[Experience, ...]:
    """Every rule with the action of another rule. A single rule is left out, because there is no other."""
    rules = [_rule(item, cues) for item in items]
    order = list(range(len(rules)))
    random.Random(seed).shuffle(order)
    found: dict[str, Experience] = {}
    for place, number in enumerate(order if len(order) > 1 else ()):
        own, other = rules[number], rules[order[place - 1]]
        said = own._replace(verb=other.verb, value=other.value)
        if said != own:
            kept = items[number]
            item = Experience.new(phrase(said), kept.granularity, SHUFFLED, support=kept.support, lift=kept.lift)
            found[item.id] = item
    return tuple(found.values())


def _rule(item: Experience, cues: tuple[CueExtractor, ...]) -> Rule:
    rule = parse(item.text, cues)
    if rule is None:
        raise UserError(f"inject.shown = {SHUFFLED!r} exchanges the actions of rules, and item {item.id} is none")
    return rule
