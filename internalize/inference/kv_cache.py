"""Kept keys and values of many conversations, and attention of a flattened batch against them.

One forward pass carries the new tokens of all conversations as one sequence [1, N]: linear layers
waste nothing on padding, and attention is done per conversation here. Each conversation owns a slot;
a slot's ids say what its keys and values stand for, also after the conversation is over, so that a
new one can start from the longest prefix anybody has left. Left out: sliding windows and other
attention variants (refused), and paging: a slot is as long as the longest conversation.
What must not change: nothing behind `Slot.ids` is ever attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from internalize.errors import UserError

from .renderer import common_prefix

ATTENTION = "internalize_slots"  # name of the attention function in transformers' registry
_GROW = 128  # slots grow by at least this many positions
_UNSUPPORTED = ("softcap", "s_aux")  # attention variants that would silently be wrong


@dataclass
class Slot:
    """One row of the buffers: whose it is, and the ids whose keys and values lie in it."""

    index: int
    owner: str | None = None
    ids: list[int] = field(default_factory=list)
    used: int = 0  # clock of the last use


@dataclass(frozen=True)
class Chunk:
    """New ids of one slot in this pass; they follow what the slot holds already."""

    slot: Slot
    ids: Sequence[int]


class KeyValues:
    """Buffers [slots, heads, capacity, head_dim] a layer, for keys and for values; they grow as needed."""

    def __init__(self, slots: int) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self._owners: dict[str, Slot] = {}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._capacity = 0
        self._clock = 0

    def find(self, owner: str) -> Slot | None:
        """The slot of a conversation, if it still has one."""
        return self._owners.get(owner)

    def longest_prefix(self, ids: Sequence[int]) -> tuple[Slot, int]:
        """The slot that shares most leading ids with `ids`, and how many; free slots win ties."""
        best = max(self.slots, key=lambda slot: (common_prefix(slot.ids, ids), slot.owner is None, -slot.index))
        return best, common_prefix(best.ids, ids)

    def claim(self, owner: str, ids: Sequence[int], busy: set[str]) -> Slot | None:
        """A slot for `owner` cut back to what it shares with `ids`; None when all belong to `busy` owners."""
        slot = self._owners.get(owner) or self._take(owner, ids, busy)
        if slot is not None:
            self._clock += 1
            slot.used = self._clock
            del slot.ids[min(common_prefix(slot.ids, ids), len(ids) - 1) :]  # the last id is always computed
        return slot

    def _take(self, owner: str, ids: Sequence[int], busy: set[str]) -> Slot | None:
        donor, shared = self.longest_prefix(ids)
        slot = donor if donor.owner is None else self._oldest(busy)
        if slot is None:
            return None
        if slot.owner is not None:
            self.release(slot.owner)
        if slot is not donor:
            slot.ids = list(ids[:shared])
            for keys, values in self._layers.values():
                keys[slot.index, :, :shared] = keys[donor.index, :, :shared]
                values[slot.index, :, :shared] = values[donor.index, :, :shared]
        slot.owner = owner
        self._owners[owner] = slot
        return slot

    def _oldest(self, busy: set[str]) -> Slot | None:
        """A free slot, else the one longest unused; the lowest first, so that those in use lie together."""
        open_slots = [slot for slot in self.slots if slot.owner not in busy]
        return min(open_slots, key=lambda slot: (slot.owner is not None, slot.used, slot.index), default=None)

    def release(self, owner: str) -> None:
        """Free a slot; its content stays for others to start from until somebody takes it."""
        slot = self._owners.pop(owner, None)
        if slot is not None:
            slot.owner = None

    def clear(self) -> None:
        """Forget all content, as when the weights have changed."""
        for slot in self.slots:
            slot.owner, slot.ids, slot.used = None, [], 0
        self._owners.clear()

    def reserve(self, length: int) -> None:
        """Make room for `length` positions in every slot."""
        if length <= self._capacity:
            return
        self._capacity = max(length, self._capacity + max(_GROW, self._capacity // 4))
        self._layers = {
            layer: (self._grown(keys), self._grown(values)) for layer, (keys, values) in self._layers.items()
        }

    def _grown(self, old: torch.Tensor) -> torch.Tensor:
        new = old.new_zeros(old.shape[0], old.shape[1], self._capacity, old.shape[3])
        new[:, :, : old.shape[2]] = old
        return new

    def layer(self, number: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers of a layer, made on first use in the shape and type of its keys [1, heads, N, head_dim]."""
        if number not in self._layers:
            shape = (len(self.slots), like.shape[1], self._capacity, like.shape[3])
            self._layers[number] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._layers[number]


class Plan:
    """Where each of the N flattened tokens of one pass belongs. Build it after `KeyValues.reserve`."""

    def __init__(self, cache: KeyValues, chunks: Sequence[Chunk], device: torch.device) -> None:
        self.cache = cache
        self.starts = [len(chunk.slot.ids) for chunk in chunks]
        self.slots = [chunk.slot.index for chunk in chunks]
        self.counts = [len(chunk.ids) for chunk in chunks]
        self.longest = max(start + count for start, count in zip(self.starts, self.counts, strict=True))
        counts = torch.tensor(self.counts)
        offsets = counts.cumsum(0) - counts
        positions = torch.arange(int(counts.sum())) + (torch.tensor(self.starts) - offsets).repeat_interleave(counts)
        self.positions_N = positions.to(device)
        self.slots_N = torch.tensor(self.slots).repeat_interleave(counts).to(device)
        self.last_C = (offsets + counts - 1).to(device)
        self._offsets = offsets.tolist()
        self._split(device)

    def _split(self, device: torch.device) -> None:
        """One-token chunks are attended to together when they fill most slots; the others one by one."""
        single = [number for number, count in enumerate(self.counts) if count == 1]
        self.rows = max((self.slots[number] for number in single), default=-1) + 1
        together = 2 * len(single) >= self.rows
        self.single = torch.tensor(
            [self._offsets[number] for number in single] if together else [], device=device
        ).long()
        self.single_slots = torch.tensor([self.slots[number] for number in single], device=device)
        self.alone = [n for n in range(len(self.counts)) if not (together and self.counts[n] == 1)]
        self.masks = {n: _causal_mask(self.counts[n], self.starts[n], device) for n in self.alone}
        self.length = max((self.starts[number] + 1 for number in single), default=0)
        ends = torch.ones(self.rows, 1, dtype=torch.long)  # a row nobody uses attends to position 0: any number will do
        for number in single:
            ends[self.slots[number]] = self.starts[number] + 1
        self.single_mask = (torch.arange(self.length) < ends)[:, None, None, :].to(device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store key and value [1, H_kv, N, D], then attend with query [1, H, N, D] -> [1, N, H, D]."""
        keys, values = self.cache.layer(layer, key)
        keys[self.slots_N, :, self.positions_N] = key[0].transpose(0, 1)
        values[self.slots_N, :, self.positions_N] = value[0].transpose(0, 1)
        out = torch.empty_like(query[0].transpose(0, 1), memory_format=torch.contiguous_format)
        if len(self.single):
            out[self.single] = self._attend_together(query[0, :, self.single], keys, values, scale)
        for number in self.alone:
            start, count = self._offsets[number], self.counts[number]
            row, end = self.slots[number], self.starts[number] + count
            mine = scaled_dot_product_attention(
                query[:, :, start : start + count],
                keys[row : row + 1, :, :end],
                values[row : row + 1, :, :end],
                attn_mask=self.masks[number],
                is_causal=count > 1 and self.masks[number] is None,
                scale=scale,
                enable_gqa=True,
            )
            out[start : start + count] = mine[0].transpose(0, 1)
        return out[None]

    def _attend_together(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One token of many slots: query [H, B, D] -> [B, H, D]; the heads that share keys become query positions."""
        heads, _, width = query.shape
        grouped = query.new_zeros(self.rows, heads, width)
        grouped[self.single_slots] = query.transpose(0, 1)
        out = scaled_dot_product_attention(
            grouped.view(self.rows, keys.shape[1], -1, width),
            keys[: self.rows, :, : self.length],
            values[: self.rows, :, : self.length],
            attn_mask=self.single_mask,
            scale=scale,
        )
        return out.reshape(self.rows, heads, width)[self.single_slots]


def _causal_mask(count: int, start: int, device: torch.device) -> torch.Tensor | None:
    """[count, start + count], True = visible; None where attention needs no mask or the plain causal one."""
    if count == 1 or start == 0:
        return None
    return torch.ones(count, start + count, dtype=torch.bool, device=device).tril(start)


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the plan knows who sees what
    scaling: float | None = None,
    *,
    plan: Plan | None = None,
    **variant: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers. Raises UserError for attention variants it does not do."""
    if plan is None:
        raise UserError("the attention layers do not pass on what the local engine tells them; choose another model")
    asked = [name for name in _UNSUPPORTED if variant.get(name) is not None]
    if (window := variant.get("sliding_window")) is not None and window < plan.longest:
        asked = ["sliding_window"]
    if asked:
        raise UserError(f"the local engine does not do attention with {asked[0]}; choose another model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return plan.attend(int(getattr(module, "layer_idx")), query, key, value, scale), None  # noqa: B009 - Module hides it
