"""A chat model over the engine and renderer that sample the policy's actions.

Decoding is not constrained: a response schema has an effect only through the messages that describe it.
"""

from __future__ import annotations

import itertools

from internalize.errors import ContextError
from internalize.interfaces import Engine, Renderer
from internalize.records import ChatRequest, Reply, Sampling

from .call_formats import split_thought


class PolicyChat:
    """`interfaces.ChatModel` over an engine of token ids."""

    name = "self"

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self._engine, self._renderer = engine, renderer
        self._numbers = itertools.count()

    async def complete(self, request: ChatRequest) -> Reply:
        """Sample one reply. Raises ContextError if the messages leave no room for one."""
        ids = self._renderer.context(request.messages, ()).ids
        conversation = f"chat {next(self._numbers)}"
        sampling = Sampling(max_tokens=request.max_tokens, temperature=request.temperature)
        try:
            sampled = await self._engine.generate(ids, conversation=conversation, seed=request.seed, sampling=sampling)
        finally:
            self._engine.release(conversation)
        if not sampled.token_ids:
            raise ContextError(f"{len(ids)} tokens of prompt leave the policy no room for an answer")
        reasoning, text = split_thought(sampled.text)
        counts = {"prompt_tokens": len(ids), "completion_tokens": len(sampled.token_ids)}
        return Reply(text=text, reasoning=reasoning, finish=sampled.finish, **counts)
