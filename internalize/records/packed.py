"""The input of a scorer: a sequence (the trunk) and the branches that fork from it, laid out one after the other.

Also the record of how far engine and scorer were from plain passes of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from .messages import Record

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
        """Whether ordinary causal attention is enough."""
        return len(self.segments) <= 1


class SelfCheck(Record):
    """Which engine, scorer and form of calls a policy got at load, and how far it was from plain forward passes.

    Log-probabilities of sampled tokens in nats, scores and gradients relative; the largest differences in float32.
    """

    engine: str = ""
    scorer: str = ""
    calls: str = ""  # how tool calls are written: a text format, or whose template
    logprobs: float
    scores: float
    gradients: float
    seconds: float
