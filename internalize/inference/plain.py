"""The plain engine: samples with the model's own forward and its own cache object, for any causal language model.

Waiting conversations start together and run until the last of them has its action: each prompt is read alone from its
longest known prefix, then all advance one token a pass as a joined batch. A recurrent state cannot be cut back when a
hint is removed, so copies are kept where prompts have diverged before and at the ends of turns. A turn then reads only
the tokens since the previous hint again, never the whole history.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from internalize.interfaces import Renderer

from .batching import BatchedEngine, Request
from .model_cache import CachedModel, State, join, select, split
from .renderer import common_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_WORTH_KEEPING = 4  # a copy is kept only if it saves reading this many ids
_COPIES = 3  # as many copies are kept as this many times the conversations of a batch


class PlainEngine(BatchedEngine):
    """`BatchedEngine` with a cache object for each conversation.

    `batch` 1 never joins caches, and lets the model count positions unless it is `placed`. `singly` as in
    `CachedModel`.
    """

    def __init__(
        self, model: PreTrainedModel, renderer: Renderer, *, singly: bool = False, placed: bool = False, **limits: Any
    ) -> None:
        super().__init__(model, renderer, **limits)
        whole: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._pass_of = CachedModel(whole, positions=placed or self._batch > 1, singly=singly)
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(whole.forward).parameters else {}
        self._copies: OrderedDict[tuple[int, ...], State] = OrderedDict()  # by the ids fed, least recently used first
        self._rows: list[Request] = []  # of the joined cache; answered ones stay until half of them are
        self._lengths: list[int] = []
        self._room = 0  # of the joined cache, in tokens: the longest row's when it was joined and every pass since
        self._cache: Any = None

    def release(self, conversation: str) -> None:
        """Do nothing: a copy belongs to no conversation and is dropped when a newer one needs its room."""

    def reset(self) -> None:
        """Forget every copy. Must be called whenever the weights change or an adapter is switched."""
        self._copies.clear()

    def _admit(self) -> None:
        """Start the waiting conversations when none is running; each can run only once at a time."""
        self._waiting = [request for request in self._waiting if not request.future.done()]
        self._running = [request for request in self._running if not request.future.done()]
        if self._running:
            return
        chosen: dict[str, Request] = {}
        for request in self._waiting:
            if len(chosen) < self._batch:
                chosen.setdefault(request.conversation, request)
        started = set(map(id, chosen.values()))
        self._waiting = [request for request in self._waiting if id(request) not in started]
        self._running, self._rows = list(chosen.values()), []

    @torch.no_grad()
    def _pass(self) -> None:
        """Read the prompts of new conversations, or feed the last sampled token of each."""
        training = self.model.training
        self.model.eval()
        try:
            if self._rows:
                self._advance()
            else:
                self._start()
        finally:
            self.model.train(training)
        self._running = [request for request in self._running if not request.future.done()]

    def _start(self) -> None:
        states, logits = [], []
        for request in self._running:
            state, logits_V = self._read(request.prompt)
            states.append(state)
            logits.append(logits_V)
        self._sample(self._running, torch.stack(logits))
        for request, state in zip(self._running, states, strict=True):
            if request.future.done():
                self._keep(request.prompt, state)
        rows = [row for row, request in enumerate(self._running) if not request.future.done()]
        self._rows, self._lengths = [self._running[row] for row in rows], [states[row].length for row in rows]
        self._room = max(self._lengths, default=0)
        self._cache = join([states[row] for row in rows]) if rows else None

    def _read(self, prompt: tuple[int, ...]) -> tuple[State, Tensor]:
        """The state after a prompt and the logits [V] that follow it."""
        known = [(common_prefix(ids, prompt), ids) for ids in self._copies]
        state, start = (
            State(),
            max((ids for shared, ids in known if shared == len(ids) < len(prompt)), key=len, default=()),
        )
        if start:
            self._copies.move_to_end(start)
            state = self._copies[start].fork()
        parting = min(max((shared for shared, _ in known), default=0), len(prompt) - 1)
        if parting - state.length >= _WORTH_KEEPING:
            state, _ = self._pass_of.feed(state, prompt[state.length : parting], **self._last)
            self._keep(prompt[:parting], state.fork())
        state, outputs = self._pass_of.feed(state, prompt[state.length :], **self._last)
        return state, outputs[-1].logits[0, -1].float()

    def _advance(self) -> None:
        """Sample one token for every row."""
        tokens = torch.tensor([request.sampled[-1:] for request in self._rows])
        output = self._pass_of(tokens, self._lengths, self._cache, self._room, **self._last)
        running = [row for row, request in enumerate(self._rows) if not request.future.done()]
        self._room += 1
        for row in running:  # the places of answered rows stay where they are, inside the model's longest context
            self._lengths[row] += 1
        self._sample([self._rows[row] for row in running], output.logits[running, -1].float())
        for row in running:
            request = self._rows[row]
            if request.future.done():
                ids = (*request.prompt, *request.sampled[:-1])
                alone = len(self._rows) == 1
                self._keep(ids, State(self._cache, len(ids)) if alone else split(self._cache, row, len(ids)))
        left = [row for row in running if not self._rows[row].future.done()]
        if left and 2 * len(left) <= len(self._rows):
            self._cache = select(self._cache, left)
            self._rows, self._lengths = [self._rows[row] for row in left], [self._lengths[row] for row in left]

    def _keep(self, ids: Sequence[int], state: State) -> None:
        """Keep a copy that nobody continues, in place of the least recently used one if there are too many."""
        self._copies[tuple(ids)] = state
        self._copies.move_to_end(tuple(ids))
        while len(self._copies) > _COPIES * self._batch:
            self._copies.popitem(last=False)
