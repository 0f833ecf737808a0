"""Public fakes of an engine and a chat model: answers come from a script, failures on demand; no torch is needed.

For tests of everything above an engine, and to try an environment without a model. The n-th reply of a conversation
depends on that conversation alone, so that scheduling cannot change a test; it has probability 1 (logprobs are 0).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from internalize.errors import InfrastructureError, UserError
from internalize.records import ChatRequest, Generation, Message, Reply, Sampling

from .renderer import Renderer

Replies = Callable[[str, str], str] | Mapping[str, Sequence[str]] | Sequence[str]


class ScriptedEngine:
    """`interfaces.Engine` with scripted replies.

    `replies` is a function of conversation and prompt text, or the replies of each conversation in
    order, or one list that every conversation goes through. `failures` are numbers of calls (from 0,
    counted over all conversations) that raise InfrastructureError instead. Read `prompts` to see what
    was asked: (conversation, prompt ids) in order of the calls.
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
        """The next reply of `conversation`, its end of turn included. Raises UserError when the script is over."""
        call = len(self.prompts)
        self.prompts.append((conversation, tuple(prompt_ids)))
        if call in self._failures:
            raise InfrastructureError(f"scripted failure of call {call}")
        text = self._reply(conversation, prompt_ids)
        ids = self.renderer.encode_text(text)
        return Generation(token_ids=ids, logprobs=(0.0,) * len(ids), text=text, finish="stop")

    def release(self, conversation: str) -> None:
        """Note the end of a conversation; its script starts anew if the name comes again."""
        self.released.append(conversation)
        self._answered.pop(conversation, None)

    def reset(self) -> None:
        """Nothing is cached here."""

    def _reply(self, conversation: str, prompt_ids: Sequence[int]) -> str:
        if callable(self._replies):
            return self._replies(conversation, str(self.renderer.tokenizer.decode(list(prompt_ids))))
        script = self._replies.get(conversation, ()) if isinstance(self._replies, Mapping) else self._replies
        number = self._answered.get(conversation, 0)
        if number >= len(script):
            raise UserError(f"the script of conversation {conversation!r} has no reply number {number}")
        self._answered[conversation] = number + 1
        return script[number]


class ScriptedChat:
    """`interfaces.ChatModel` with scripted answers.

    `replies` is a function of the messages, or a list that the calls go through. A Reply stands for itself, a text for
    a Reply of whole words as tokens, an exception is raised. `requests` holds what was asked.
    """

    def __init__(
        self, replies: Callable[[Sequence[Message]], str] | Sequence[str | Reply | Exception], name: str = "scripted"
    ) -> None:
        self.name = name
        self.requests: list[ChatRequest] = []
        self._replies = replies

    @property
    def asked(self) -> list[tuple[Message, ...]]:
        """The messages of every request so far."""
        return [request.messages for request in self.requests]

    async def complete(self, request: ChatRequest) -> Reply:
        """The next answer. Raises UserError when the script is over."""
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
        read = sum(len(message.text.split()) for message in request.messages)
        return Reply(text=reply, prompt_tokens=read, completion_tokens=len(reply.split()))
