"""Public fakes of an engine and a chat model, with scripted replies and scripted failures; they need no torch.

The n-th reply of a conversation depends on that conversation alone, so that scheduling cannot change a test; it has
probability 1 (logprobs are 0).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from internalize.errors import InfrastructureError, UserError
from internalize.interfaces import Renderer
from internalize.records import ChatRequest, Generation, Message, Reply, Sampling

Replies = Callable[[str, str], str] | Mapping[str, Sequence[str]] | Sequence[str]


class ScriptedEngine:
    """`interfaces.Engine` with scripted replies.

    `replies` is a function of conversation and prompt text, a list for each conversation, or one list that every
    conversation goes through. `failures` are numbers of calls (from 0, over all conversations) that raise
    InfrastructureError instead. `prompts` holds conversation and prompt ids of every call, in order.
    """

    def __init__(self, replies: Replies, renderer: Renderer, *, failures: Collection[int] = ()) -> None:
        self.renderer = renderer
        self.prompts: list[tuple[str, tuple[int, ...]]] = []
        self.released: list[str] = []
        self._replies = replies
        self._failures = frozenset(failures)
        self._answered: dict[str, int] = {}

    async def generate(
        self,
        prompt_ids: Sequence[int],
        *,
        conversation: str,
        seed: int,  # noqa: ARG002
        sampling: Sampling | None = None,  # noqa: ARG002
    ) -> Generation:
        """The next reply of `conversation`, its end of turn included. Raises UserError at the end of the script."""
        call = len(self.prompts)
        self.prompts.append((conversation, tuple(prompt_ids)))
        if call in self._failures:
            raise InfrastructureError(f"scripted failure of call {call}")
        if callable(self._replies):
            text = self._replies(conversation, str(self.renderer.tokenizer.decode(list(prompt_ids))))
        else:
            script = self._replies.get(conversation, ()) if isinstance(self._replies, Mapping) else self._replies
            number = self._answered.get(conversation, 0)
            if number >= len(script):
                raise UserError(f"the script of conversation {conversation!r} has no reply number {number}")
            self._answered[conversation] = number + 1
            text = script[number]
        ids = self.renderer.encode_text(text)
        return Generation(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, finish="stop")

    def release(self, conversation: str) -> None:
        """End a conversation; its script starts again if the name is used again."""
        self.released.append(conversation)
        self._answered.pop(conversation, None)

    def reset(self) -> None:
        """Do nothing: there is no cache."""


class ScriptedChat:
    """`interfaces.ChatModel` with scripted replies.

    `replies` is a function of the messages, or a list that the calls go through. A text becomes a Reply with words
    counted as tokens; an exception is raised. `requests` holds every request.
    """

    def __init__(
        self, replies: Callable[[Sequence[Message]], str] | Sequence[str | Reply | Exception], name: str = "scripted"
    ) -> None:
        self.name = name
        self.requests: list[ChatRequest] = []
        self._replies = replies

    @property
    def prompts(self) -> list[tuple[Message, ...]]:
        """The messages of every request."""
        return [request.messages for request in self.requests]

    async def complete(self, request: ChatRequest) -> Reply:
        """The next reply. Raises UserError at the end of the script."""
        number = len(self.requests)
        self.requests.append(request)
        if callable(self._replies):
            reply: str | Reply | Exception = self._replies(request.messages)
        elif number < len(self._replies):
            reply = self._replies[number]
        else:
            raise UserError(f"the script has no answer number {number}")
        if isinstance(reply, Exception):
            raise reply
        if isinstance(reply, Reply):
            return reply
        words = sum(len(message.text.split()) for message in request.messages)
        return Reply(text=reply, prompt_tokens=words, completion_tokens=len(reply.split()))
