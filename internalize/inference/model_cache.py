"""Uses a model's own cache object: passes that continue it, copies of it, and a batch of the caches of several rows.

It works for any architecture. A cache may hold keys and values, windows of them, convolution and recurrent states; a
recurrent state cannot be cut back, so only copies can undo a pass. `join` pads on the left, so that distances between
tokens do not change; the self-check finds out whether a model reads such a batch correctly.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from internalize.errors import UserError

_NAMES = ("past_key_values", "cache_params", "state")  # names of the cache argument in models


class State(NamedTuple):
    """A cache of one sequence, and how many tokens it has been fed. None = nothing yet."""

    cache: Any = None
    length: int = 0

    def fork(self) -> State:
        """A copy that can be continued independently."""
        return State(copy.deepcopy(self.cache), self.length)


class CachedModel:
    """A module (a causal language model, or the transformer below its head) run with its own cache.

    `positions`: whether positions are passed, counted from 0; some models count from elsewhere, and some not at all.
    `singly`: whether a non-empty cache is fed one token a pass; some recurrent layers lose their state otherwise.
    """

    def __init__(self, module: nn.Module, *, positions: bool = True, singly: bool = False) -> None:
        self._module, self._positions, self._singly = module, positions, singly
        self._parameters = inspect.signature(module.forward).parameters
        found = [name for name in _NAMES if name in self._parameters]
        if not found:
            raise UserError(f"{type(module).__name__} takes no cache")
        self._name = found[0]

    def __call__(self, ids_BT: Tensor, lengths: Sequence[int], cache: Any, room: int | None = None, **more: Any) -> Any:
        """The module's output for tokens that follow `lengths` cached ones in each row; its cache grows in place.

        The cache has `room` entries a row (None: as many as all the `lengths`); shorter rows have theirs on the right.
        """
        device = next(self._module.parameters()).device
        cached, room = torch.tensor(lengths), lengths[0] if room is None else room
        arguments: dict[str, Any] = dict(more)
        if self._positions:
            arguments["position_ids"] = cached[:, None] + torch.arange(ids_BT.shape[1])
        if min(lengths) < room:
            seen = torch.arange(room + ids_BT.shape[1]) >= room - cached[:, None]
            arguments["attention_mask"] = seen.long()
        known = {name: value for name, value in arguments.items() if name in self._parameters}
        moved = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in known.items()}
        return self._module(input_ids=ids_BT.to(device), use_cache=True, **{self._name: cache}, **moved)

    def feed(self, state: State, ids: Sequence[int] | Tensor, **more: Any) -> tuple[State, list[Any]]:
        """The state after `ids`, in place of `state`, and the outputs: one, or with `singly` one for each token."""
        ids_T, outputs = torch.as_tensor(ids), []
        for part in torch.split(ids_T, 1 if self._singly and state.length else len(ids_T)):
            outputs.append(self(part[None], [state.length], state.cache, **more))
            state = State(getattr(outputs[-1], self._name), state.length + len(part))
        return state, outputs


def join(states: Sequence[State]) -> Any:
    """One cache with a row for each of `states`; tensors with a sequence are padded on the left."""
    if len(states) == 1:
        return states[0].cache
    joined = copy.copy(states[0].cache)
    joined.layers = [copy.copy(layer) for layer in joined.layers]
    for layer, *rows in zip(joined.layers, *(state.cache.layers for state in states), strict=True):
        for name, tensors in _with_sequence(rows):
            longest = max(tensor.shape[-2] for tensor in tensors)
            padded = [nn.functional.pad(tensor, (0, 0, longest - tensor.shape[-2], 0)) for tensor in tensors]
            setattr(layer, name, torch.cat(padded))
        for name, places in _without_sequence(rows[0]):
            merged = {place: _cat([getattr(row, name)[place] for row in rows]) for place in places}
            setattr(layer, name, merged)
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = max(row.cumulative_length for row in rows)
    return joined


def split(cache: Any, row: int, length: int) -> State:
    """A copy of one row of a joined cache as a state of `length` tokens."""
    return State(_rows(cache, [row], lambda tensor: min(length, tensor.shape[-2]), length), length)


def select(cache: Any, rows: Sequence[int]) -> Any:
    """Some rows of a joined cache, with the same padding."""
    return _rows(cache, rows, lambda tensor: int(tensor.shape[-2]), None)


def _rows(cache: Any, rows: Sequence[int], last: Callable[[Tensor], int], length: int | None) -> Any:
    """A copy with some rows; tensors with a sequence keep only the `last` entries."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in chosen.layers:
        for name, (tensor,) in _with_sequence([layer]):
            kept = last(tensor)
            setattr(layer, name, tensor[list(rows), ..., tensor.shape[-2] - kept :, :].clone())
        for name, places in _without_sequence(layer):
            states = getattr(layer, name)
            setattr(layer, name, {place: None if (s := states[place]) is None else s[list(rows)] for place in places})
        if length is not None and hasattr(layer, "cumulative_length"):
            layer.cumulative_length = length
        for name, value in vars(layer).items():
            if isinstance(value, dict):  # flags that change in place
                setattr(layer, name, dict(value))
    return chosen


def _with_sequence(rows: Sequence[Any]) -> Iterator[tuple[str, list[Tensor]]]:
    """Attributes that are tensors [1, ..., tokens, width] in each of the same layers."""
    for name, value in list(vars(rows[0]).items()):
        if isinstance(value, Tensor) and value.dim() >= 3 and value.numel():
            yield name, [getattr(row, name) for row in rows]


def _without_sequence(layer: Any) -> Iterator[tuple[str, list[Any]]]:
    """Attributes that are states [1, ...] by place, and the places."""
    for name, value in list(vars(layer).items()):
        if isinstance(value, dict) and any(isinstance(state, Tensor) for state in value.values()):
            yield name, list(value)


def _cat(tensors: Sequence[Tensor | None]) -> Tensor | None:
    found = [tensor for tensor in tensors if tensor is not None]
    return torch.cat(found) if found else None
