"""Who acts in an episode: an engine of token ids (`Actor`) or a chat endpoint without them (`ChatActor`).

Both turn the clean history and a hint into the next action's text. Left out: the episode around it (rollout.py).
What must not change: the hint ends the last message and stays out of the history, in either form; a turn that was
sampled as text has no token ids and is never given any here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from internalize.config.schema import RolloutConfig
from internalize.errors import ContextError
from internalize.interfaces import ChatModel, Engine, Judge
from internalize.records import ChatRequest, Generation, Message

from .renderer import Renderer, ToolProtocol, Turn

_A_TOKEN = 4  # characters of new text a token is taken for where no tokenizer is at hand
_CONTROL = re.compile(r"<(?=[|\uff5c][^<>\n]{1,40}[|\uff5c]>|/?s>|(?:start|end)_of_turn>)|\[(?=/?INST\])")


@dataclass(frozen=True)
class Moment:
    """What is known when an action is due: prompt (with a global injection, if any) and what came after it."""

    name: str  # the episode's id
    prompt: tuple[Message, ...]
    turns: Sequence[Turn]
    texts: Sequence[str]  # of the past actions
    hint: str
    seed: int


class Acting(Protocol):
    """The seam between `rollout` and whoever acts."""

    @property
    def limits(self) -> RolloutConfig:
        """The limits of an episode."""
        ...

    @property
    def wave(self) -> int:
        """How many episodes run together: a batch of its own (not `apart`), or the most at a time."""
        ...

    @property
    def judge(self) -> Judge | None:
        """Asked about answers that the environment cannot grade."""
        ...

    @property
    def protocol(self) -> ToolProtocol:
        """How actions are written and read."""
        ...

    @property
    def apart(self) -> bool:
        """Whether episodes are no part of one batch: then only missing ones are run, and each is kept at once."""
        ...

    async def act(self, moment: Moment) -> Generation | None:
        """The next action, or None if the context is full. Raises InfrastructureError."""
        ...

    def release(self, name: str) -> None:
        """An episode is over."""
        ...

    def reset(self) -> None:
        """Forget everything that could reach from one wave into the next."""
        ...


@dataclass(frozen=True)
class Actor:
    """An engine, how it reads and writes, and the limits of an episode. `remote`: the engine is a server."""

    engine: Engine
    renderer: Renderer
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    remote: bool = False

    @property
    def protocol(self) -> ToolProtocol:
        """The renderer's."""
        return self.renderer.protocol

    @property
    def apart(self) -> bool:
        """A server batches as it likes."""
        return self.remote

    async def act(self, moment: Moment) -> Generation | None:
        """Sample from the rendered ids."""
        ids = self.renderer.context(moment.prompt, moment.turns, moment.hint).ids
        if len(ids) + self.limits.max_action_tokens > self.max_context:
            return None
        return await self.engine.generate(ids, conversation=moment.name, seed=moment.seed)

    def release(self, name: str) -> None:
        """The engine may forget the conversation."""
        self.engine.release(name)

    def reset(self) -> None:
        """Reused prefixes would change the last bits of logprobs from a run to its resumption."""
        self.engine.reset()


@dataclass(frozen=True)
class ChatActor:
    """A chat model, the protocol of actions, and the limits of an episode. Its steps have text and no token ids."""

    chat: ChatModel
    protocol: ToolProtocol
    limits: RolloutConfig
    max_context: int
    wave: int
    judge: Judge | None = None
    apart: bool = True

    async def act(self, moment: Moment) -> Generation | None:
        """Ask for the next message. The room is judged by length, or by the server when it says it is too much."""
        messages = chat_messages(moment)
        characters = sum(len(message.content) for message in messages)
        if characters // _A_TOKEN + self.limits.max_action_tokens > self.max_context:
            return None
        try:
            reply = await self.chat.complete(
                ChatRequest(
                    messages=tuple(messages),
                    max_tokens=self.limits.max_action_tokens,
                    temperature=self.limits.temperature,
                    seed=moment.seed,
                )
            )
        except ContextError:
            return None
        return Generation(token_ids=(), logprobs=(), text=reply.text, finish=reply.finish)

    def release(self, name: str) -> None:
        """Nothing is held."""

    def reset(self) -> None:
        """Nothing is held."""


def chat_messages(moment: Moment) -> list[Message]:
    """The messages of a moment, the hint at the end of the last one after a line break, as in local rendering.

    Marks that chat templates use for control are broken up: text of an environment must not end its own turn.
    """
    messages = list(moment.prompt)
    for text, turn in zip(moment.texts, moment.turns, strict=True):
        messages += [Message(role="assistant", content=text), Message(role="user", content=turn.observation)]
    plain = [message.model_copy(update={"content": _plain(message.content)}) for message in messages]
    if moment.hint:
        last = plain[-1]
        plain[-1] = last.model_copy(update={"content": f"{last.content}\n{_plain(moment.hint)}"})
    return plain


def _plain(text: str) -> str:
    return _CONTROL.sub(lambda match: f"{match.group()} ", text)
