"""The local engine: samples many conversations at once with a Hugging Face model and keeps their keys and values.

Every pass carries the next token of each running conversation and the unread prompt tokens of those that just joined,
as one flattened sequence; a conversation that finishes its action leaves, and the next joins without waiting for the
others. Between turns a conversation keeps its keys and values up to the first id that differs (the hint of a step is
cut away at the next). For 8 conversations of 3 turns on a CPU, transformers' continuous batching took 3.2 times its
processor time and padded `generate` 1.8 times (benchmarks/rollout_engine.py).

Training must never see slot attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from internalize.errors import UserError
from internalize.interfaces import Renderer

from .batching import BatchedEngine, Request
from .kv_cache import ATTENTION, BatchPlan, Chunk, KeyValues, slot_attention
from .renderer import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PASS_TOKENS = 2048  # most tokens in one pass; bounds memory while prompts are read
_WORTH_SHARING = 32  # a prompt waits one pass if it can then start from this many more ids

AttentionInterface.register(ATTENTION, slot_attention)


class LocalEngine(BatchedEngine):
    """`BatchedEngine` in which every running conversation has a slot of keys and values."""

    def __init__(self, model: PreTrainedModel, renderer: Renderer, **limits: Any) -> None:
        super().__init__(model, renderer, **limits)
        self._cache = KeyValues(self._batch)

    def release(self, conversation: str) -> None:
        """Free the slot of a finished conversation; unknown names are ignored."""
        self._cache.release(conversation)

    def reset(self) -> None:
        """Drop all keys and values. Must be called whenever the weights change or an adapter is switched."""
        self._cache.clear()

    def _admit(self) -> None:
        """Assign slots to waiting requests in order; a request that would soon share a long prefix waits one pass."""
        self._running = [request for request in self._running if not request.future.done()]
        busy = {request.conversation for request in self._running}
        reading: list[tuple[int, ...]] = []
        waiting: list[Request] = []
        for request in self._waiting:
            if request.future.done():  # its caller was cancelled
                continue
            slot = None
            if request.conversation not in busy and not self._better_later(request, reading):
                slot = self._cache.claim(request.conversation, request.prompt, busy)
            if slot is None:
                waiting.append(request)
                continue
            busy.add(request.conversation)
            reading.append(request.prompt)
            self._running.append(request)
        self._waiting = waiting

    def _better_later(self, request: Request, reading: Sequence[tuple[int, ...]]) -> bool:
        """Whether a prompt read in this pass will give a new conversation a much longer prefix than any slot now."""
        if not reading or self._cache.find(request.conversation) is not None:
            return False
        soon = max(common_prefix(prompt, request.prompt) for prompt in reading)
        return soon >= self._cache.longest_prefix(request.prompt)[1] + _WORTH_SHARING

    def _pass(self) -> None:
        """Read up to `_PASS_TOKENS` unread ids, and sample for every request whose ids are all read."""
        chunks, finishing, budget = [], [], _PASS_TOKENS
        reading = [(self._cache.owned(request.conversation), request) for request in self._running]
        unread = [(request.unread(len(slot.ids)), slot, request) for slot, request in reading]
        for rest, slot, request in sorted(unread, key=lambda entry: len(entry[0])):
            ids = rest[:budget]
            if ids:
                budget -= len(ids)
                chunks.append(Chunk(slot, ids))
                finishing.append(request if len(ids) == len(rest) else None)
        logits_CV = self._forward(chunks)
        for chunk in chunks:
            chunk.slot.ids.extend(chunk.ids)
        rows = [row for row, request in enumerate(finishing) if request is not None]
        self._sample([request for request in finishing if request is not None], logits_CV[rows])
        self._running = [request for request in self._running if not request.future.done()]

    def _forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Next-token logits [C, V] after each chunk."""
        self._cache.reserve(max(len(chunk.slot.ids) + len(chunk.ids) for chunk in chunks))
        plan = BatchPlan(self._cache, chunks, self.model.device)
        ids = torch.tensor([[token for chunk in chunks for token in chunk.ids]], device=self.model.device)
        with torch.no_grad(), _slot_attention(self.model):
            output = self.model(
                input_ids=ids,
                position_ids=plan.positions_N[None],
                use_cache=False,
                logits_to_keep=plan.last_C,
                plan=plan,
            )
        logits: torch.Tensor = output.logits[0].float()
        return logits


@contextmanager
def _slot_attention(model: Any) -> Iterator[None]:
    """Switch the model to slot attention and evaluation mode, and back afterwards, for training."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, training = base.config._attn_implementation, model.training  # noqa: SLF001 - it has no public name
    base.set_attn_implementation(ATTENTION)
    if base.config._attn_implementation != ATTENTION:  # noqa: SLF001
        raise UserError(f"{type(base).__name__} does not let its attention be replaced; choose another model")
    if training:
        model.eval()
    try:
        yield
    finally:
        base.set_attn_implementation(before)
        if training:
            model.train()
