"""Counts of repairs and dropped parts in a reading of logs, with their reasons."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Notes:
    """Counts by reason. A repair keeps the meaning of the log; a dropped part is in no trajectory."""

    repaired: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
