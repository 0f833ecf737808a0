"""How the pool grew: which items came and went in each iteration, and what it was then made of.

Left out: whether an item helps (utility.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from internalize.evaluation.pool_health import PoolHealth, pool_health
from internalize.records import Experience

from .run_report import IterationReport


class Change(NamedTuple):
    """What one iteration did to the pool, and the pool's health after it."""

    number: int
    added: tuple[Experience, ...]
    removed: tuple[Experience, ...]
    health: PoolHealth


def changes(iterations: Sequence[IterationReport], entities: Collection[str] = ()) -> list[Change]:
    """Items that came and went, iteration by iteration; `entities` are names that belong to single tasks."""
    found, before = [], dict[str, Experience]()
    for iteration in iterations:
        if iteration.pool is None:
            continue
        now = {item.id: item for item in iteration.pool}
        added = tuple(item for key, item in now.items() if key not in before)
        removed = tuple(item for key, item in before.items() if key not in now)
        found.append(Change(iteration.number, added, removed, pool_health(iteration.pool, entities)))
        before = now
    return found
