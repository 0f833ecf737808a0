"""A second Engine: one plain forward pass over the whole context for every token, without a cache or a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from internalize.config.schema import Config
from internalize.inference.batching import sample
from internalize.inference.renderer import TemplateRenderer
from internalize.records import Generation, Sampling


class PlainEngine:
    """`interfaces.Engine` on any causal language model."""

    def __init__(self, model: Any, renderer: TemplateRenderer, config: Config) -> None:
        self.model, self.renderer, self.max_context = model, renderer, config.model.max_context
        self.sampling = Sampling(
            max_tokens=config.rollout.max_action_tokens, temperature=config.rollout.temperature
        )  # of actions
        self.passes = 0

    async def generate(
        self, prompt_ids: Sequence[int], *, conversation: str, seed: int, sampling: Sampling | None = None
    ) -> Generation:
        """Continue the prompt until an end of turn or the end of the room."""
        wanted, rng = sampling or self.sampling, np.random.default_rng(seed)
        ids, logprobs = list(prompt_ids), list[float]()
        while len(logprobs) < wanted.max_tokens and len(ids) < self.max_context:
            with torch.no_grad():
                logits_RV = self.model(input_ids=torch.tensor([ids])).logits[:, -1].float()
            self.passes += 1
            (token,), (logprob,) = sample(logits_RV, [rng.random()], wanted.temperature)
            ids.append(token)
            logprobs.append(logprob)
            if token in self.renderer.stop_ids:
                break
        sampled = tuple(ids[len(prompt_ids) :])
        finish = "stop" if sampled and sampled[-1] in self.renderer.stop_ids else "length"
        text = self.renderer.decode(sampled)
        return Generation(token_ids=sampled, logprobs=tuple(logprobs), text=text, finish=finish)

    def release(self, conversation: str) -> None:
        """There is no cache."""

    def reset(self) -> None:
        """There is no cache."""
