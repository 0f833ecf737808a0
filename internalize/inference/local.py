"""The local engine: samples many conversations at once with a Hugging Face model and keeps their keys and values.

Every pass carries the next token of each running conversation and the unread prompt tokens of those that just joined,
as one flattened sequence; a conversation that finishes its action leaves, and the next joins without waiting for the
others. Between turns a conversation keeps its keys and values up to the first id that differs (the hint of a step is
cut away at the next). For 8 conversations of 3 turns on a CPU, transformers' continuous batching took 3.2 times its
processor time and padded `generate` 1.8 times (benchmarks/rollout_engine.py).

A sample depends on prompt, seed and weights, and on other conversations of its batch by float rounding only; stored
log-probabilities are those of temperature 1. Training must never see slot attention.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import AttentionInterface

from internalize.errors import UserError
from internalize.records import Generation, Sampling

from .kv_cache import ATTENTION, BatchPlan, Chunk, KeyValues, Slot, slot_attention
from .renderer import Renderer, common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PASS_TOKENS = 2048  # most tokens in one pass; bounds memory while prompts are read
_WORTH_SHARING = 32  # a prompt waits one pass if it can then start from this many more ids
_BLOCK = 256  # vocabulary entries summed together when sampling
_INSIDE = 1.0 - 1e-12  # keeps a target below the last partial sum, whatever the rounding

AttentionInterface.register(ATTENTION, slot_attention)


@dataclass
class _Request:
    """One action being sampled."""

    conversation: str
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    rng: np.random.Generator
    future: asyncio.Future[Generation]
    slot: Slot | None = None
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def unread(self) -> Sequence[int]:
        """Ids whose keys and values are not in the slot yet."""
        cached = 0 if self.slot is None else len(self.slot.ids)
        return self.prompt[cached:] if cached < len(self.prompt) else self.sampled[cached - len(self.prompt) :]


class LocalEngine:
    """`interfaces.Engine` on a model in this process.

    `batch` conversations run together and keep their keys and values; others queue. A prompt that leaves no room in
    `max_context` gives no ids and finish "length".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        renderer: Renderer,
        *,
        max_action_tokens: int = 48,
        temperature: float = 1.0,
        batch: int = 48,
        max_context: int = 1536,
    ) -> None:
        self.model, self.renderer, self.max_context = model, renderer, max_context
        self._sampling = Sampling(max_tokens=max_action_tokens, temperature=temperature)
        self._cache = KeyValues(batch)
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._scheduled = False

    async def generate(
        self, prompt_ids: Sequence[int], *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        """Continue `prompt_ids` until an end of turn, `sampling.max_tokens` or `max_context`."""
        sampling = sampling or self._sampling
        max_tokens = min(sampling.max_tokens, self.max_context - len(prompt_ids))
        if max_tokens <= 0 or not prompt_ids:
            return Generation(token_ids=(), logprobs=(), text="", finish="length")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # requests of a closed loop can never be answered
            self._loop, self._waiting, self._running, self._scheduled = loop, [], [], False
        rng, future = np.random.default_rng(seed), loop.create_future()
        request = _Request(conversation, tuple(prompt_ids), max_tokens, sampling.temperature, rng, future)
        self._waiting.append(request)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._gather, 0)
        return await request.future

    def release(self, conversation: str) -> None:
        """Free the slot of a finished conversation; unknown names are ignored."""
        self._cache.release(conversation)

    def reset(self) -> None:
        """Forget all keys and values. Must be called whenever the weights change or an adapter is switched."""
        self._cache.clear()

    def _gather(self, waiting: int) -> None:
        """Put the first pass off while conversations keep joining, so that it carries all that are ready."""
        if len(self._waiting) > waiting:
            asyncio.get_running_loop().call_soon(self._gather, len(self._waiting))
        else:
            self._tick()

    def _tick(self) -> None:
        """Run one pass, and schedule the next behind the callers that this one answered."""
        try:
            self._admit()
            if self._running:
                self._pass()
        except torch.OutOfMemoryError:
            self._fail(UserError("sampling does not fit in device memory; lower compute.batch or model.max_context"))
        except Exception as error:  # noqa: BLE001 - callers whose future is never set would wait for ever
            self._fail(error)
        self._scheduled = bool(self._running or self._waiting)
        if self._scheduled:
            asyncio.get_running_loop().call_soon(self._tick)

    def _fail(self, error: Exception) -> None:
        for request in self._running + self._waiting:
            if not request.future.done():
                request.future.set_exception(error)
        self._running, self._waiting = [], []
        self.reset()

    def _admit(self) -> None:
        """Assign slots to waiting requests in order; a request that would soon share a long prefix waits one pass."""
        self._running = [request for request in self._running if not request.future.done()]
        busy = {request.conversation for request in self._running}
        reading: list[tuple[int, ...]] = []
        waiting: list[_Request] = []
        for request in self._waiting:
            if request.future.done():  # its caller was cancelled
                continue
            if request.conversation not in busy and not self._better_later(request, reading):
                request.slot = self._cache.claim(request.conversation, request.prompt, busy)
            if request.slot is None:
                waiting.append(request)
                continue
            busy.add(request.conversation)
            reading.append(request.prompt)
            self._running.append(request)
        self._waiting = waiting

    def _better_later(self, request: _Request, reading: Sequence[tuple[int, ...]]) -> bool:
        """Whether a prompt read in this pass will offer a new conversation a much longer prefix than any slot now."""
        if not reading or self._cache.find(request.conversation) is not None:
            return False
        soon = max(common_prefix(prompt, request.prompt) for prompt in reading)
        return soon >= self._cache.longest_prefix(request.prompt)[1] + _WORTH_SHARING

    def _pass(self) -> None:
        """Read up to `_PASS_TOKENS` unread ids, and sample for every request whose ids are all read."""
        chunks, finishing, budget = [], [], _PASS_TOKENS
        for request in sorted(self._running, key=lambda request: len(request.unread())):
            unread = request.unread()
            ids = unread[:budget]
            if ids and request.slot is not None:
                budget -= len(ids)
                chunks.append(Chunk(request.slot, ids))
                finishing.append(request if len(ids) == len(unread) else None)
        logits_CV = self._forward(chunks)
        for chunk in chunks:
            chunk.slot.ids.extend(chunk.ids)
        rows: dict[float, list[int]] = {}  # by temperature
        for row, finished in enumerate(finishing):
            if finished is not None:
                rows.setdefault(finished.temperature, []).append(row)
        for temperature, same in rows.items():
            self._sample([r for row in same if (r := finishing[row])], logits_CV[same], temperature)
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

    def _sample(self, requests: Sequence[_Request], logits_RV: torch.Tensor, temperature: float) -> None:
        """Sample one id for each request, and answer those that are complete."""
        draws = [request.rng.random() for request in requests]
        for request, token, logprob in zip(requests, *sample(logits_RV, draws, temperature), strict=True):
            request.sampled.append(token)
            request.logprobs.append(logprob)
            stopped = token in self.renderer.stop_ids
            if stopped or len(request.sampled) == request.max_tokens:
                request.future.set_result(
                    Generation(
                        token_ids=tuple(request.sampled),
                        logprobs=tuple(request.logprobs),
                        text=self.renderer.decode(request.sampled),
                        finish="stop" if stopped else "length",
                    )
                )


def sample(logits_RV: torch.Tensor, draws: Sequence[float], temperature: float) -> tuple[list[int], list[float]]:
    """One token a row by inverse CDF of softmax(logits / temperature), and its raw log-probability.

    `draws` are uniform in [0, 1). Temperature 0 takes the most likely token. Sums run in float64, so that a token
    changes only if its draw lies within rounding of a boundary.
    """
    if temperature == 0:
        tokens = logits_RV.argmax(-1)
    else:
        peak = logits_RV.amax(-1, keepdim=True)
        tokens = _inverse_cdf(((logits_RV - peak) / temperature).exp_(), draws)
    chosen = logits_RV.gather(-1, tokens[:, None])[:, 0] - logits_RV.logsumexp(-1)
    return tokens.tolist(), chosen.tolist()


def _inverse_cdf(weights_RV: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
    """Find the block of `_BLOCK` entries that contains the draw, then the entry: cheaper than a float64 sum of all."""
    rows = torch.arange(len(draws), device=weights_RV.device)
    padding = -weights_RV.shape[1] % _BLOCK
    blocks = torch.nn.functional.pad(weights_RV, (0, padding)).view(len(draws), -1, _BLOCK)
    mass = blocks.sum(-1).double().cumsum(-1)
    target = torch.tensor(draws, dtype=torch.float64, device=mass.device) * _INSIDE * mass[:, -1]
    block = torch.searchsorted(mass, target[:, None], right=True)[:, 0]
    inside = blocks[rows, block].double().cumsum(-1)
    below = torch.where(block > 0, mass[rows, (block - 1).clamp(min=0)], 0.0)
    left = torch.minimum(target - below, _INSIDE * inside[:, -1])
    return block * _BLOCK + torch.searchsorted(inside, left[:, None].contiguous(), right=True)[:, 0]


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
