"""A second Scorer: one plain pass of the model over every action's whole context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from internalize.records.packed import Packed, Segment
from internalize.training.scoring import backbone


class StepScorer:
    """`interfaces.Scorer` on any causal language model."""

    def __init__(self) -> None:
        self.passes = 0

    def score(self, model: nn.Module, packs: Sequence[Packed]) -> Iterator[Tensor]:
        """Last hidden states at the positions that predict the action tokens of each of `packs`: [A, D]."""
        for packed in packs:
            rows = packed.rows.tolist()
            found: dict[int, Tensor] = {}
            for segment in packed.segments:
                wanted = [row for row in rows if segment.start <= row < segment.end]
                if wanted:
                    hidden_TD = self._context(model, packed, segment)
                    found |= {row: hidden_TD[segment.reach + row - segment.start] for row in wanted}
            yield torch.stack([found[row] for row in rows])

    def _context(self, model: nn.Module, packed: Packed, segment: Segment) -> Tensor:
        """Hidden states [T, D] of what a segment sees, in order, and of itself."""
        before = packed.ids[segment.trunk : segment.trunk + segment.reach]
        ids = torch.cat([before, packed.ids[segment.start : segment.end]])
        self.passes += 1
        hidden_TD: Tensor = backbone(model)(input_ids=ids[None], use_cache=False).last_hidden_state[0]
        return hidden_TD
