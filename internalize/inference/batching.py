"""The queue of an engine that samples many conversations together, and the sampling itself.

An engine chooses which waiting requests join and runs one pass at a time; between passes the event loop runs the
callers that got an answer, so that their next requests can join. A sample depends on prompt, seed and weights, and on
the rest of its batch only by float rounding; stored log-probabilities are those of temperature 1.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from internalize.errors import UserError
from internalize.interfaces import Renderer
from internalize.records import Generation, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_BLOCK = 256  # vocabulary entries summed together when sampling
_INSIDE = 1.0 - 1e-12  # keeps a target below the last partial sum, whatever the rounding


@dataclass
class Request:
    """One action being sampled."""

    conversation: str
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float
    rng: np.random.Generator
    future: asyncio.Future[Generation]
    sampled: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def unread(self, cached: int) -> Sequence[int]:
        """The ids of prompt and sample after the first `cached` ones."""
        return self.prompt[cached:] if cached < len(self.prompt) else self.sampled[cached - len(self.prompt) :]


class BatchedEngine(ABC):
    """`interfaces.Engine` on a model in this process: up to `batch` conversations run together, others wait.

    A prompt that leaves no room in `max_context` gives no ids and finish "length".
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
        self._batch = batch
        self._waiting: list[Request] = []
        self._running: list[Request] = []
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
        request = Request(conversation, tuple(prompt_ids), max_tokens, sampling.temperature, rng, future)
        self._waiting.append(request)
        if not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._gather, 0)
        return await request.future

    @abstractmethod
    def release(self, conversation: str) -> None:
        """Drop the cache of a finished conversation; unknown names are ignored."""

    @abstractmethod
    def reset(self) -> None:
        """Drop every cache. Must be called whenever the weights change or an adapter is switched."""

    @abstractmethod
    def _admit(self) -> None:
        """Move requests that can join from `_waiting` to `_running`."""

    @abstractmethod
    def _pass(self) -> None:
        """One pass of the model: sample for every running request that is ready, and remove answered ones."""

    def _gather(self, waiting: int) -> None:
        """Delay the first pass while conversations keep joining, so that it carries all that are ready."""
        if len(self._waiting) > waiting:
            asyncio.get_running_loop().call_soon(self._gather, len(self._waiting))
        else:
            self._tick()

    def _tick(self) -> None:
        """Run one pass, and schedule the next one after the callers that this one answered."""
        try:
            self._admit()
            if self._running:
                self._pass()
        except torch.OutOfMemoryError:
            self._fail(UserError("sampling does not fit in device memory; lower compute.batch or model.max_context"))
        except Exception as error:  # noqa: BLE001 - else callers would wait for ever
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

    def _sample(self, requests: Sequence[Request], logits_RV: torch.Tensor) -> None:
        """Sample one id for each request, and answer those that are complete."""
        rows: dict[float, list[int]] = {}
        for row, request in enumerate(requests):
            rows.setdefault(request.temperature, []).append(row)
        for temperature, same in rows.items():
            draws = [requests[row].rng.random() for row in same]
            for row, token, logprob in zip(same, *sample(logits_RV[same], draws, temperature), strict=True):
                self._take(requests[row], token, logprob)

    def _take(self, request: Request, token: int, logprob: float) -> None:
        """Add a sampled id, and answer the request if it is complete."""
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
