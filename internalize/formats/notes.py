"""What reading a log met with: what was repaired, and what was dropped, each with its reason and how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass
class Notes:
    """Counts by reason. A repair keeps what the log means; what is dropped is in no trajectory."""

    repaired: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
