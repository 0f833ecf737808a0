"""Several processes that train one model: equal shares of every optimizer step, and what they must agree on.

An optimizer step has the rows that it has in one process, so the weights are the same up to rounding. Where rows do not
come out even, fillers take their place: items of weight 0, which count in no loss and no denominator.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch.distributed as dist
from accelerate.data_loader import SeedableRandomSampler
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.utils.data import Sampler

from internalize.config.distill import DistillConfig
from internalize.errors import UserError

from .teachers import TrainItem

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)

Row = tuple[tuple[int | None, TrainItem], ...]  # items of a step, with their numbers; None: not measured


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))  # of the launcher


def require_shares(config: DistillConfig, number: int) -> None:
    """Raises UserError for settings under which `number` processes could not do what one does."""
    if config.batch_tokens:
        raise UserError(
            f"compute.devices = {number} share the rows of a step, and distill.batch_tokens = {config.batch_tokens} "
            "makes one row of it; set distill.batch instead"
        )
    if config.batch % number:
        raise UserError(f"distill.batch = {config.batch} is no multiple of compute.devices = {number}")
    if "deepspeed" in config.trainer:
        raise UserError(
            "distill.trainer.deepspeed: what its shards train, measure and save has never been compared with one "
            "process; distill.trainer.fsdp shards weights, and that has been"
        )
    if "fsdp" in config.trainer:
        averages = config.asks_teacher and config.teacher.kind == "ema"
        if averages and not config.lora_r:
            raise UserError(
                "distill.teacher = 'ema' with distill.lora_r = 0 averages the output layer, which distill.trainer.fsdp "
                "shards; that is not supported"
            )


def rows_of(items: Sequence[TrainItem], batch_tokens: int) -> list[Row]:
    """One item a row, or rows of items with just `batch_tokens` action tokens or more (the last may have fewer)."""
    rows: list[Row] = []
    row: Row = ()
    tokens = 0
    for index, item in enumerate(items):
        row += ((index, item), (None, item.with_experience)) if item.with_experience else ((index, item),)
        tokens += len(item.packed.targets)
        if tokens >= batch_tokens:
            rows.append(row)
            row, tokens = (), 0
    return [*rows, row] if row else rows


def even(rows: Sequence[Row], number: int) -> list[Row]:
    """The rows, and fillers so that all have as many items and their count is a multiple of `number`."""
    shortest = min((item for row in rows for _, item in row), key=lambda item: len(item.packed.ids))
    filler = (None, replace(shortest, weight=0.0, with_experience=None))
    width = max(map(len, rows))
    full = [row + (filler,) * (width - len(row)) for row in rows]
    return full + [(filler,) * width] * (-len(full) % number)


class EvenSampler(Sampler[int]):
    """The order in which one process would take `rows` rows, then the fillers up to `total`."""

    def __init__(self, rows: int, total: int, seed: int) -> None:
        self._order = SeedableRandomSampler(range(rows), data_seed=seed)
        self._total = total

    def __iter__(self) -> Iterator[int]:
        yield from self._order
        yield from range(len(self._order), self._total)

    def __len__(self) -> int:
        return self._total

    def set_epoch(self, epoch: int) -> None:
        """Each epoch has an order of its own."""
        self._order.set_epoch(epoch)


def merged(own: dict[int, float]) -> dict[int, float]:
    """What all processes have measured, in the order of the numbers."""
    parts: list[Any] = [own] * processes()
    if processes() > 1:
        dist.all_gather_object(parts, own)
    found = {number: value for part in parts for number, value in part.items()}
    return dict(sorted(found.items())) if len(parts) > 1 else own


def optimizer_state(model: nn.Module, optimizer: Any) -> dict[str, Any]:
    """The optimizer's state, put together from all processes that train together; the first of them gets it."""
    if is_sharded(model):
        return get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    found: dict[str, Any] = getattr(optimizer, "optimizer", optimizer).state_dict()  # accelerate wraps it
    return found


def load_optimizer(model: nn.Module, optimizer: Any, state: dict[str, Any]) -> None:
    """Go on from an `optimizer_state` of the same model, trained by as many processes or by others."""
    if is_sharded(model):
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])  # a schedule adds it, and the same keys are asked for
        set_optimizer_state_dict(model, optimizer, state, options=_WHOLE)
    else:
        getattr(optimizer, "optimizer", optimizer).load_state_dict(state)


def is_sharded(model: nn.Module) -> bool:
    """Whether weights are spread over processes, so that they are whole only inside of a forward pass."""
    return any(hasattr(weight, "full_tensor") for weight in model.parameters())
