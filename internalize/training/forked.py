"""The forked scorer, for models whose attention cannot be replaced: it uses their own forward and their own cache.

The history is read once into the cache; at every step a copy of the cache is continued with that step's hint and
action. So the number of tokens read grows linearly with the steps, and every layer sees plain causal contexts only.
With gradients every branch is a plain pass over its whole context, because caches change in place; a student without
experience has no branches and is one plain pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from internalize.inference.model_cache import CachedModel, State
from internalize.records.packed import Packed, Segment

from .head import backbone


class ForkedScorer:
    """`interfaces.Scorer` on any causal language model that has a cache; fields as in `CachedModel`."""

    def __init__(self, *, positions: bool = True, singly: bool = False) -> None:
        self._options = {"positions": positions, "singly": singly}

    def score(self, model: nn.Module, packs: Sequence[Packed]) -> Iterator[Tensor]:
        """Last hidden states at the positions that predict the action tokens of each of `packs`: [A, D]."""
        for packed in packs:
            with_gradient = torch.is_grad_enabled() and any(weight.requires_grad for weight in model.parameters())
            parts = _separate(model, packed) if packed.plain or with_gradient else self._forked(model, packed)
            hidden_TD = torch.cat(parts)
            yield hidden_TD[packed.rows.to(hidden_TD.device)]

    @torch.no_grad()
    def _forked(self, model: nn.Module, packed: Packed) -> list[Tensor]:
        """Hidden states [tokens, D] of every segment: trunks in pieces up to each fork, branches on cache copies."""
        cached, found = CachedModel(backbone(model), **self._options), dict[Segment, Tensor]()
        for trunk in (segment for segment in packed.segments if not segment.reach):
            branches = [s for s in packed.segments if s.reach and s.trunk == trunk.start]
            state, pieces = State(), []
            for fork in sorted({trunk.end - trunk.start, *(branch.reach for branch in branches)}):
                if fork > state.length:
                    piece = packed.ids[trunk.start + state.length : trunk.start + fork]
                    state, outputs = cached.feed(state, piece)
                    pieces += [output.last_hidden_state[0] for output in outputs]
                for branch in (branch for branch in branches if branch.reach == fork):
                    _, outputs = cached.feed(state.fork(), packed.ids[branch.start : branch.end])
                    found[branch] = torch.cat([output.last_hidden_state[0] for output in outputs])
            found[trunk] = torch.cat(pieces)
        return [found[segment] for segment in packed.segments]


def _separate(model: nn.Module, packed: Packed) -> list[Tensor]:
    """Hidden states [tokens, D] of every segment, each by a plain pass over its whole context."""
    module, parts = backbone(model), []
    for segment in packed.segments:
        before = packed.ids[segment.trunk : segment.trunk + segment.reach]
        ids = torch.cat([before, packed.ids[segment.start : segment.end]])
        output = module(input_ids=ids[None].to(next(model.parameters()).device), use_cache=False)
        parts.append(output.last_hidden_state[0, segment.reach :])
    return parts
