"""Keys and values of many conversations, and attention of a flattened batch against them.

One forward pass carries the new tokens of all conversations as one sequence [1, N], so that linear layers spend nothing
on padding; attention is computed per conversation. A conversation owns a slot, and `Slot.ids` names the tokens whose
keys and values the slot holds, also after the conversation has ended: a new conversation starts from the longest prefix
in any slot. Positions beyond `Slot.ids` hold stale values and must never be attended to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from internalize.errors import UserError

from .renderer import common_prefix

ATTENTION = "internalize_slots"  # name of `slot_attention` in transformers' registry
_GROW = 128  # slots grow by at least this many positions
_UNSUPPORTED = ("softcap", "s_aux")  # arguments of attention variants that `BatchPlan` would compute wrongly


@dataclass
class Slot:
    """One row of the buffers: the conversation that owns it, and the ids whose keys and values it holds."""

    index: int
    owner: str | None = None
    ids: list[int] = field(default_factory=list)
    last_use: int = 0  # `KeyValues._clock` at the last claim


@dataclass(frozen=True)
class Chunk:
    """The ids that a pass appends to one slot."""

    slot: Slot
    ids: Sequence[int]


class KeyValues:
    """Buffers [slots, heads, capacity, head_dim] for the keys and the values of each layer; they grow as needed."""

    def __init__(self, slots: int) -> None:
        self.slots = [Slot(index) for index in range(slots)]
        self._owners: dict[str, Slot] = {}
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._capacity = 0
        self._clock = 0

    def find(self, owner: str) -> Slot | None:
        """The slot of a conversation, if it owns one."""
        return self._owners.get(owner)

    def owned(self, owner: str) -> Slot:
        """The slot of a conversation that owns one."""
        return self._owners[owner]

    def longest_prefix(self, ids: Sequence[int]) -> tuple[Slot, int]:
        """The slot that shares most leading ids with `ids`, and how many; free slots win ties."""
        best = max(self.slots, key=lambda slot: (common_prefix(slot.ids, ids), slot.owner is None, -slot.index))
        return best, common_prefix(best.ids, ids)

    def claim(self, owner: str, ids: Sequence[int], busy: set[str]) -> Slot | None:
        """A slot for `owner`, cut to the prefix it shares with `ids`; None if `busy` owners have all slots."""
        slot = self._owners.get(owner) or self._assign(owner, ids, busy)
        if slot is not None:
            self._clock += 1
            slot.last_use = self._clock
            del slot.ids[min(common_prefix(slot.ids, ids), len(ids) - 1) :]  # the last id is always computed
        return slot

    def _assign(self, owner: str, ids: Sequence[int], busy: set[str]) -> Slot | None:
        """The slot with the longest shared prefix if it is free, else another slot, to which the prefix is copied."""
        donor, shared = self.longest_prefix(ids)
        slot: Slot | None = donor
        if donor.owner is not None:  # free slots first, then the least recently used; low indices keep batches dense
            idle = [slot for slot in self.slots if slot.owner not in busy]
            slot = min(idle, key=lambda slot: (slot.owner is not None, slot.last_use, slot.index), default=None)
        if slot is None:
            return None
        if slot.owner is not None:
            self.release(slot.owner)
        if slot is not donor:
            slot.ids = list(ids[:shared])
            for buffers in self._layers.values():
                for buffer in buffers:
                    buffer[slot.index, :, :shared] = buffer[donor.index, :, :shared]
        slot.owner = owner
        self._owners[owner] = slot
        return slot

    def release(self, owner: str) -> None:
        """Free a slot; others can reuse its content as a prefix until the slot is claimed."""
        if slot := self._owners.pop(owner, None):
            slot.owner = None

    def clear(self) -> None:
        """Forget all content, as when the weights have changed."""
        for slot in self.slots:  # in place: requests under way hold these objects
            slot.owner, slot.ids, slot.last_use = None, [], 0
        self._owners.clear()

    def reserve(self, length: int) -> None:
        """Make room for `length` positions in every slot."""
        if length <= self._capacity:
            return
        more = max(length, self._capacity + max(_GROW, self._capacity // 4)) - self._capacity
        self._capacity += more
        self._layers = {
            layer: (torch.nn.functional.pad(keys, (0, 0, 0, more)), torch.nn.functional.pad(values, (0, 0, 0, more)))
            for layer, (keys, values) in self._layers.items()
        }

    def layer(self, number: int, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Buffers of a layer, made on first use; as wide as its keys [1, H_kv, N, D] and values [1, H_kv, N, W]."""
        if number not in self._layers:
            room = (len(self.slots), keys.shape[1], self._capacity)
            self._layers[number] = (keys.new_zeros(*room, keys.shape[3]), values.new_zeros(*room, values.shape[3]))
        return self._layers[number]


class BatchPlan:
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
        self._batch_single_tokens(device)

    def _batch_single_tokens(self, device: torch.device) -> None:
        """Chunks of one token share an attention call if they fill at least half of the rows it must read."""
        single = [number for number, count in enumerate(self.counts) if count == 1]
        self.rows = max((self.slots[number] for number in single), default=-1) + 1
        if 2 * len(single) < self.rows:
            single = []
        self.single = torch.tensor([self._offsets[number] for number in single], device=device).long()
        self.single_slots = torch.tensor([self.slots[number] for number in single], device=device)
        self.separate = sorted(set(range(len(self.counts))) - set(single))
        self.masks = {n: _causal_mask(self.counts[n], self.starts[n], device) for n in self.separate}
        self.length = max((self.starts[number] + 1 for number in single), default=0)
        ends = torch.ones(self.rows, 1, dtype=torch.long)  # unused rows see position 0: softmax of no entry is NaN
        for number in single:
            ends[self.slots[number]] = self.starts[number] + 1
        self.single_mask = (torch.arange(self.length) < ends)[:, None, None, :].to(device)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """Store keys [1, H_kv, N, D] and values [1, H_kv, N, W]; attend with query [1, H, N, D] -> [1, N, H, W]."""
        keys, values = self.cache.layer(layer, key, value)
        keys[self.slots_N, :, self.positions_N] = key[0].transpose(0, 1)
        values[self.slots_N, :, self.positions_N] = value[0].transpose(0, 1)
        out = query.new_empty(query.shape[2], query.shape[1], value.shape[3])
        if len(self.single):
            out[self.single] = self._attend_single_tokens(query[0, :, self.single], keys, values, scale)
        for number in self.separate:
            start, count = self._offsets[number], self.counts[number]
            row, end = self.slots[number], self.starts[number] + count
            attended = scaled_dot_product_attention(
                query[:, :, start : start + count],
                keys[row : row + 1, :, :end],
                values[row : row + 1, :, :end],
                attn_mask=self.masks[number],
                is_causal=count > 1 and self.masks[number] is None,
                scale=scale,
                enable_gqa=True,
            )
            out[start : start + count] = attended[0].transpose(0, 1)
        return out[None]

    def _attend_single_tokens(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """One token of many slots: query [H, B, D] -> [B, H, W]; heads that share keys become query positions."""
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
        return out.reshape(self.rows, heads, -1)[self.single_slots]


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
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - the plan determines which positions are visible
    scaling: float | None = None,
    *,
    plan: BatchPlan | None = None,
    **variant: Any,
) -> tuple[torch.Tensor, None]:
    """The attention function registered with transformers. Raises UserError for unsupported variants of attention."""
    if plan is None:
        raise UserError("the attention layers drop the keyword arguments of the local engine; choose another model")
    unsupported = [name for name in _UNSUPPORTED if variant.get(name) is not None]
    if (window := variant.get("sliding_window")) is not None and window < plan.longest:
        unsupported = ["sliding_window"]
    if unsupported:
        raise UserError(f"the local engine does not support attention with {unsupported[0]}; choose another model")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return plan.attend(int(getattr(module, "layer_idx")), query, key, value, scale), None  # noqa: B009 - Module hides it
