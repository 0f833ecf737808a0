"""The local engine: samples many conversations at once with a Hugging Face model, keys and values kept.

Every pass carries the next token of each running conversation and the unread prompt tokens of those
that just joined, as one flattened sequence; a conversation that finishes its action leaves and the
next one joins without waiting for the others. Between turns a conversation keeps its keys and values
up to the first id that differs (a step's hint is cut away at the next step). It exists because, for
8 conversations of 3 turns on a CPU, transformers' continuous batching took 3.2 times its processor
time and padded `generate`, which reads the history again every turn, 1.8 times
(benchmarks/rollout_engine.py). Left out: threads, CUDA graphs, speculative decoding; serve large models.
What must not change: a sample depends on prompt, seed and weights, not on who else is in the batch
(beyond float rounding); stored logprobs are raw (temperature 1); training never sees slot attention.
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

from .kv_cache import ATTENTION, Chunk, KeyValues, Plan, Slot, slot_attention
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
    room: int  # most ids it may sample
    temperature: float
    rng: np.random.Generator
    future: asyncio.Future[Generation]
    slot: Slot | None = None
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def unread(self) -> Sequence[int]:
        """Ids whose keys and values are not in the slot yet."""
        held = 0 if self.slot is None else len(self.slot.ids)
        if held < len(self.prompt):
            return self.prompt[held:]
        return self.sampled[held - len(self.prompt) :]


class LocalEngine:
    """`interfaces.Engine` on a model in this process.

    `batch` conversations run together and keep their keys and values; more wait their turn. A prompt
    that leaves no room in `max_context` is answered with no ids and finish "length".
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
        self.model = model
        self.renderer = renderer
        self.max_action_tokens = max_action_tokens
        self.temperature = temperature
        self.max_context = max_context
        self._cache = KeyValues(batch)
        self._waiting: list[_Request] = []
        self._running: list[_Request] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._armed = False

    async def generate(
        self, prompt_ids: Sequence[int], *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        """Continue `prompt_ids` until an end of turn, `sampling.max_tokens` or `max_context`."""
        wanted = sampling or Sampling(max_tokens=self.max_action_tokens, temperature=self.temperature)
        room = min(wanted.max_tokens, self.max_context - len(prompt_ids))
        if room <= 0 or not prompt_ids:
            return Generation(token_ids=(), logprobs=(), text="", finish="length")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:  # requests of a loop that was closed can never be answered
            self._loop, self._waiting, self._running, self._armed = loop, [], [], False
        rng, future = np.random.default_rng(seed), loop.create_future()
        request = _Request(conversation, tuple(prompt_ids), room, wanted.temperature, rng, future)
        self._waiting.append(request)
        if not self._armed:
            self._armed = True
            loop.call_soon(self._gather, 0)
        return await request.future

    def release(self, conversation: str) -> None:
        """Give up the slot of a finished conversation; unknown names are ignored."""
        self._cache.release(conversation)

    def reset(self) -> None:
        """Forget all keys and values. Call it whenever the weights change or an adapter is switched."""
        self._cache.clear()

    def _gather(self, seen: int) -> None:
        """Wait while conversations keep joining, so that the first pass has all that are ready."""
        loop = asyncio.get_running_loop()
        if len(self._waiting) > seen:
            loop.call_soon(self._gather, len(self._waiting))
        else:
            self._tick()

    def _tick(self) -> None:
        """One pass, then the event loop may run whoever got an answer, then the next pass."""
        try:
            self._admit()
            if self._running:
                self._pass()
        except torch.OutOfMemoryError:
            self._fail(UserError("sampling does not fit in device memory; lower model.batch or model.max_context"))
        except Exception as error:  # noqa: BLE001 - a caller left without an answer would wait for ever
            self._fail(error)
        self._armed = bool(self._running or self._waiting)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._tick)

    def _fail(self, error: Exception) -> None:
        for request in self._running + self._waiting:
            if not request.future.done():
                request.future.set_exception(error)
        self._running, self._waiting = [], []
        self.reset()

    def _admit(self) -> None:
        """Give slots to waiting requests in order, but let those with a long common start wait for it once."""
        self._running = [request for request in self._running if not request.future.done()]
        self._waiting = [request for request in self._waiting if not request.future.done()]
        busy = {request.conversation for request in self._running}
        reading: list[tuple[int, ...]] = []
        left: list[_Request] = []
        for request in self._waiting:
            if request.conversation in busy or self._better_later(request, reading):
                left.append(request)
                continue
            request.slot = self._cache.claim(request.conversation, request.prompt, busy)
            if request.slot is None:
                left.append(request)
                continue
            busy.add(request.conversation)
            reading.append(request.prompt)
            self._running.append(request)
        self._waiting = left

    def _better_later(self, request: _Request, reading: Sequence[tuple[int, ...]]) -> bool:
        """Whether a prompt read in this pass will offer a new conversation a much longer start than any slot now."""
        if not reading or self._cache.find(request.conversation) is not None:
            return False
        soon = max(common_prefix(prompt, request.prompt) for prompt in reading)
        return soon >= self._cache.longest_prefix(request.prompt)[1] + _WORTH_SHARING

    def _pass(self) -> None:
        """Read up to `_PASS_TOKENS` unread ids and sample for every request that is read to its end."""
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
        rows = [row for row, request in enumerate(finishing) if request is not None]
        if rows:
            self._sample([request for request in finishing if request is not None], logits_CV[rows])

    def _forward(self, chunks: Sequence[Chunk]) -> torch.Tensor:
        """Next-token logits [C, V] after each chunk."""
        self._cache.reserve(max(len(chunk.slot.ids) + len(chunk.ids) for chunk in chunks))
        plan = Plan(self._cache, chunks, self.model.device)
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

    def _sample(self, requests: Sequence[_Request], logits_RV: torch.Tensor) -> None:
        """One id for each request; rows of one temperature together, which nearly always are all."""
        temperatures = [request.temperature for request in requests]
        for temperature in dict.fromkeys(temperatures):
            rows = [row for row, own in enumerate(temperatures) if own == temperature]
            some = logits_RV if len(rows) == len(requests) else logits_RV[rows]
            self._sample_alike([requests[row] for row in rows], some, temperature)
        self._running = [request for request in self._running if not request.future.done()]

    def _sample_alike(self, requests: Sequence[_Request], logits_RV: torch.Tensor, temperature: float) -> None:
        draws = [request.rng.random() for request in requests]
        tokens, logprobs = sample(logits_RV, draws, temperature)
        for request, token, logprob in zip(requests, tokens, logprobs, strict=True):
            request.sampled.append(token)
            request.logprobs.append(logprob)
            stopped = token in self.renderer.stop_ids
            if stopped or len(request.sampled) == request.room:
                self._answer(request, stopped=stopped)

    def _answer(self, request: _Request, *, stopped: bool) -> None:
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

    `draws` are uniform in [0, 1). Temperature 0 takes the most likely token. Sums run in float64, so
    that a token changes only if its draw lies within rounding of a boundary.
    """
    if temperature == 0:
        tokens = logits_RV.argmax(-1)
    else:
        peak = logits_RV.amax(-1, keepdim=True)
        tokens = _inverse_cdf(((logits_RV - peak) / temperature).exp_(), draws)
    chosen = logits_RV.gather(-1, tokens[:, None])[:, 0] - logits_RV.logsumexp(-1)
    return tokens.tolist(), chosen.tolist()


def _inverse_cdf(weights_RV: torch.Tensor, draws: Sequence[float]) -> torch.Tensor:
    """First the block of `_BLOCK` entries that holds the draw, then the entry: faster than summing all in float64."""
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
    """Switch the model to slot attention and evaluation mode, and back: training must not notice."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    before, training = base.config._attn_implementation, model.training  # noqa: SLF001 - it has no public name
    base.set_attn_implementation(ATTENTION)
    if base.config._attn_implementation != ATTENTION:  # noqa: SLF001
        raise UserError(f"{type(base).__name__} has no exchangeable attention; choose another model")
    if training:
        model.eval()
    try:
        yield
    finally:
        base.set_attn_implementation(before)
        if training:
            model.train()
