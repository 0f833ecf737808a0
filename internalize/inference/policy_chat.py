"""The policy asked for text: a chat model over its own engine and renderer.

Left out: constrained decoding, so a schema is only what the messages say of it. What must not change: the answer is
sampled by the same engine and weights as the policy's actions, and each question is a conversation of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from internalize.errors import ContextError
from internalize.interfaces import Engine
from internalize.records import Message, Reply, Sampling

from .renderer import Renderer


class PolicyChat:
    """`interfaces.ChatModel` over an engine of token ids."""

    name = "self"

    def __init__(self, engine: Engine, renderer: Renderer) -> None:
        self._engine, self._renderer = engine, renderer
        self._numbers = itertools.count()

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        schema: Mapping[str, JsonValue] | None = None,  # noqa: ARG002 - nothing here can enforce it
        max_tokens: int = 1024,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> Reply:
        """One answer. Raises ContextError if the messages leave no room for one."""
        ids = self._renderer.context(messages, ()).ids
        conversation = f"chat {next(self._numbers)}"
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
        try:
            found = await self._engine.generate(ids, conversation=conversation, seed=seed, sampling=sampling)
        finally:
            self._engine.release(conversation)
        if not found.token_ids:
            raise ContextError(f"{len(ids)} tokens of prompt leave the policy no room for an answer")
        return Reply(
            text=found.text, finish=found.finish, prompt_tokens=len(ids), completion_tokens=len(found.token_ids)
        )
