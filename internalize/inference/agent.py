"""Agents over an engine of token ids (`TokenAgent`) and over a chat endpoint that gives text only (`ChatAgent`).

Both turn the clean history and a hint into the next turn. The hint ends the last message and stays out of the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from internalize.config.schema import RolloutConfig
from internalize.errors import ContextError
from internalize.interfaces import ChatModel, Engine, Judge, Renderer, ToolFormat
from internalize.records import ActionRequest, ActionTurn, ChatRequest, Generation, Message, Sampling, ToolSpec

from .token_estimate import estimated_tokens
from .tool_formats import as_text, as_user


@dataclass(frozen=True)
class TokenAgent:
    """An engine of token ids with its renderer. `independent`: the engine is a server, which forms its own batches."""

    engine: Engine
    renderer: Renderer
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    independent: bool = False

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tool format's description of the tools; "" where the model's template has them."""
        return self.renderer.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """Sample a continuation of the rendered context."""
        ids = self.renderer.context(request.prompt, request.steps, request.hint, request.tools).ids
        if len(ids) + self.limits.max_turn_tokens > self.max_context:
            return None
        generation = await self._sampled(ids, request)
        message, problem = self.renderer.parse(generation.token_ids, request.tools)
        return ActionTurn(message=message, problem=problem, **dict(generation))

    async def _sampled(self, ids: Sequence[int], request: ActionRequest) -> Generation:
        """A turn whose thought and action each keep to their own limit."""
        action = min(self.limits.max_action_tokens, request.max_tokens or self.limits.max_action_tokens)
        thinking = self.limits.max_thinking_tokens
        first = await self._continued(ids, request, max(thinking, action), request.seed)
        if not thinking or first.finish == "stop":
            return first
        thought = self.renderer.thought_length(first.token_ids)
        if not thought and self.renderer.parse(first.token_ids, request.tools)[0].reasoning:
            return first  # the thought is cut off, and there is no action
        left = thought + action - len(first.token_ids)
        if left <= 0:
            kept = first.token_ids[: thought + action]
            update = {"token_ids": kept, "logprobs": first.logprobs[: len(kept)], "text": self.renderer.decode(kept)}
            return first.model_copy(update=update)
        rest = await self._continued((*ids, *first.token_ids), request, left, request.seed + 1)
        whole = first.token_ids + rest.token_ids
        return Generation(
            token_ids=whole,
            logprobs=first.logprobs + rest.logprobs if len(first.logprobs) == len(first.token_ids) else (),
            text=self.renderer.decode(whole),
            finish=rest.finish,
        )

    async def _continued(self, ids: Sequence[int], request: ActionRequest, most: int, seed: int) -> Generation:
        sampling = Sampling(max_tokens=most, temperature=self.limits.temperature)
        return await self.engine.generate(ids, conversation=request.episode, seed=seed, sampling=sampling)

    def release(self, episode: str) -> None:
        """Let the engine forget the conversation."""
        self.engine.release(episode)

    def reset(self) -> None:
        """Forget every prefix: reusing one changes the last bits of logprobs, so a resumed run would differ."""
        self.engine.reset()


@dataclass(frozen=True)
class ChatAgent:
    """A chat model that reads about its tools in the prompt. Its turns have text and no token ids."""

    chat: ChatModel
    tool_format: ToolFormat
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    independent: bool = True

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tool format's description of the tools."""
        return self.tool_format.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """Request the next message. The context is full by its estimated length, or when the server says so."""
        messages = chat_messages(request, self.tool_format)
        tokens = sum(estimated_tokens(message.text) for message in messages)
        if tokens + self.limits.max_turn_tokens > self.max_context:
            return None
        try:
            reply = await self.chat.complete(
                ChatRequest(
                    messages=tuple(messages),
                    max_tokens=min(self.limits.max_turn_tokens, request.max_tokens or self.limits.max_turn_tokens),
                    temperature=self.limits.temperature,
                    seed=request.seed,
                )
            )
        except ContextError:
            return None
        message = self.tool_format.parse(reply.text, request.tools)
        problem = self.tool_format.problem(reply.text, request.tools)
        if reply.reasoning:
            message = message.model_copy(update={"reasoning": reply.reasoning})
        finish = "length" if reply.finish == "length" else "stop"  # a refusal is a turn of the model's own
        return ActionTurn(text=reply.text, message=message, problem=problem, finish=finish)

    def release(self, episode: str) -> None:
        """Do nothing: a chat endpoint keeps no state of an episode."""

    def reset(self) -> None:
        """Do nothing: a chat endpoint keeps no state of a wave."""


def chat_messages(request: ActionRequest, tool_format: ToolFormat) -> list[Message]:
    """The messages of a request, with the hint on a new line at the end of the last one, as the renderer places it."""
    messages = list(request.prompt)
    for step in request.steps:
        text = as_text(step.shown, tool_format) if step.shown else step.text
        messages += [Message(role="assistant", content=text), as_user(step.results)]
    texts = [message.text for message in messages]
    if request.hint:
        texts[-1] += f"\n{request.hint}"
    return [message.model_copy(update={"content": text}) for message, text in zip(messages, texts, strict=True)]
