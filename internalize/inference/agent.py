"""Who acts in an episode: an engine of token ids (`TokenAgent`) or a chat endpoint without them (`ChatAgent`).

Both turn the clean history and a hint into the next turn. The hint ends the last message and stays out of the history.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from internalize.config.schema import RolloutConfig
from internalize.errors import ContextError
from internalize.interfaces import ChatModel, Engine, Judge, ToolFormat
from internalize.records import ActionRequest, ActionTurn, ChatRequest, Message, ToolSpec

from .renderer import Renderer
from .token_estimate import estimated_tokens
from .tool_formats import as_user

_CONTROL = re.compile(r"<(?=[|\uff5c][^<>\n]{1,40}[|\uff5c]>|/?s>|(?:start|end)_of_turn>)|\[(?=/?INST\])")


@dataclass(frozen=True)
class TokenAgent:
    """An engine of token ids with its renderer. `independent`: the engine is a server, which batches as it likes."""

    engine: Engine
    renderer: Renderer
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    independent: bool = False

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the tool format says about the tools."""
        return self.renderer.tool_format.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """Sample from the rendered ids."""
        ids = self.renderer.context(request.prompt, request.steps, request.hint).ids
        if len(ids) + self.limits.max_action_tokens > self.max_context:
            return None
        found = await self.engine.generate(ids, conversation=request.episode, seed=request.seed)
        return ActionTurn(
            text=found.text,
            message=self.renderer.tool_format.parse(found.text, request.tools),
            token_ids=found.token_ids,
            logprobs=found.logprobs,
            finish=found.finish,
        )

    def release(self, episode: str) -> None:
        """The engine may forget the conversation."""
        self.engine.release(episode)

    def reset(self) -> None:
        """Forget every prefix: reused ones would change the last bits of logprobs from a run to its resumption."""
        self.engine.reset()


@dataclass(frozen=True)
class ChatAgent:
    """A chat model that is told of its tools in the prompt. Its turns have text and no token ids."""

    chat: ChatModel
    tool_format: ToolFormat
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    independent: bool = True

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the tool format says about the tools."""
        return self.tool_format.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """Ask for the next message. The room is judged by length, or by the server when it says it is too much."""
        messages = chat_messages(request)
        tokens = sum(estimated_tokens(message.text) for message in messages)
        if tokens + self.limits.max_action_tokens > self.max_context:
            return None
        try:
            reply = await self.chat.complete(
                ChatRequest(
                    messages=tuple(messages),
                    max_tokens=self.limits.max_action_tokens,
                    temperature=self.limits.temperature,
                    seed=request.seed,
                )
            )
        except ContextError:
            return None
        message = self.tool_format.parse(reply.text, request.tools)
        if reply.reasoning:
            message = message.model_copy(update={"reasoning": reply.reasoning})
        return ActionTurn(text=reply.text, message=message, finish=reply.finish)

    def release(self, episode: str) -> None:
        """A chat endpoint holds nothing of an episode."""

    def reset(self) -> None:
        """A chat endpoint holds nothing of a wave."""


def chat_messages(request: ActionRequest) -> list[Message]:
    """The messages of a request, the hint at the end of the last one after a line break, as in local rendering.

    Marks that chat templates use for control are broken up: text of an environment must not end its own turn.
    """
    messages = list(request.prompt)
    for step in request.steps:
        messages += [Message(role="assistant", content=step.text), as_user(step.results)]
    plain = [message.model_copy(update={"content": _plain(message.text)}) for message in messages]
    if request.hint:
        last = plain[-1]
        plain[-1] = last.model_copy(update={"content": f"{last.text}\n{_plain(request.hint)}"})
    return plain


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda match: f"{match.group()} ", text)
