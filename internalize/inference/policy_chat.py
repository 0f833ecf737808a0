"""The policy asked for text: a chat model over the engine and the renderer that sample its actions.

Nothing here constrains decoding: a response schema is only what the messages say of it.
"""

from __future__ import annotations

import itertools

from internalize.errors import ContextError
from internalize.interfaces import Engine
from internalize.records import ChatRequest, Reply, Sampling

from .renderer import Renderer
from .structured import split_reasoning


class PolicyChat:
    """`interfaces.ChatModel` over an engine of token ids."""

    name = "self"

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self._engine, self._renderer = engine, renderer
        self._numbers = itertools.count()

    async def complete(self, request: ChatRequest) -> Reply:
        """One answer. Raises ContextError if the messages leave no room for one."""
        ids = self._renderer.context(request.messages, ()).ids
        conversation = f"chat {next(self._numbers)}"
        sampling = Sampling(max_tokens=request.max_tokens, temperature=request.temperature)
        try:
            found = await self._engine.generate(ids, conversation=conversation, seed=request.seed, sampling=sampling)
        finally:
            self._engine.release(conversation)
        if not found.token_ids:
            raise ContextError(f"{len(ids)} tokens of prompt leave the policy no room for an answer")
        reasoning, text = split_reasoning(found.text)
        return Reply(
            text=text,
            reasoning=reasoning,
            finish=found.finish,
            prompt_tokens=len(ids),
            completion_tokens=len(found.token_ids),
        )
