"""What a scorer is given: a sequence (the trunk) and the branches that fork from it, laid out one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Segment(NamedTuple):
    """Packed positions [start, end) that see each other causally, and all of [trunk, trunk + reach) before them."""

    start: int
    end: int
    trunk: int = 0
    reach: int = 0


@dataclass(frozen=True)
class Packed:
    """Trunks and their branches as one sequence. Integer tensors on the CPU."""

    ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    segments: tuple[Segment, ...]  # who attends to whom; every token is in one segment, in order
    rows: Tensor  # [A] position that predicts each action token
    targets: Tensor  # [A] the action tokens

    @property
    def plain(self) -> bool:
        """Whether ordinary causal attention is all it needs."""
        return len(self.segments) <= 1
