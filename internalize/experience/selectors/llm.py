"""Selection by a language model: the policy itself or an endpoint.

The prompt holds the library first and the conversation last, so that a server that caches prefixes reads the library
once: for one pool and k the prompt is byte-identical up to the (clean) conversation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pydantic import JsonValue

from internalize.errors import InfrastructureError
from internalize.inference.structured import ask, fenced
from internalize.interfaces import ChatModel, Selector
from internalize.records import ChatRequest, Experience, Message

from .lexical import LexicalSelector

MOST_CHARACTERS = 12_000  # characters of a conversation: some 3,000 tokens
ANSWER_TOKENS = 256
_LOG = logging.getLogger(__name__)


class LLMSelector:
    """Asks `chat` for 1 to k ids; after `tries` answers without a valid one `fallback` serves.

    `served_by` is "llm:NAME", "all" (the pool holds at most k items: nothing to ask) or "lexical after llm failed:
    KIND", KIND being `unreachable` (no answer), `too long` (for the model's context), `refused`, `empty`, `cut off` or
    `invalid` (an answer of another form).
    """

    def __init__(self, chat: ChatModel, *, fallback: Selector | None = None, tries: int = 3) -> None:
        self._chat, self._tries = chat, tries
        self._fallback = fallback or LexicalSelector()
        self._warned: set[str] = set()

    async def select(
        self, messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> tuple[tuple[str, ...], str]:
        """At most `k` ids, best first, and who chose them. Raises Incomplete when the endpoint's budget is spent."""
        if len(items) <= k:
            return tuple(item.id for item in items), "all"
        ids = frozenset(item.id for item in items)
        try:
            request = ChatRequest(
                messages=prompt(messages, items, k), response_schema=_schema(sorted(ids), k), max_tokens=ANSWER_TOKENS
            )
            answer = await ask(self._chat, request, lambda found: _read(found, ids, k), tries=self._tries)
        except InfrastructureError as error:
            failure, reason = error.kind, str(error)
        else:
            if answer.value:
                return answer.value, f"llm:{self._chat.name}"
            failure, reason = answer.kind, answer.problem
        if failure not in self._warned:
            self._warned.add(failure)
            _LOG.warning("the selector %s failed (%s: %s); another serves instead", self._chat.name, failure, reason)
        chosen, fallback = await self._fallback.select(messages, items, k)
        return chosen, f"{fallback} after llm failed: {failure}"


def prompt(messages: Sequence[Message], items: Sequence[Experience], k: int) -> tuple[Message, Message]:
    """The prompt for one decision: instructions, then library and conversation."""
    ordered = sorted(items, key=lambda item: (item.iteration, item.id))  # an order that does not depend on the pool's
    library = "\n".join(f"[{item.id}] {' '.join(item.text.split())}" for item in ordered)
    content = f"Library:\n{fenced('library', library)}\n\nConversation:\n{fenced('conversation', shown(messages))}"
    return Message(role="system", content=_instructions().replace("{k}", str(k))), Message(role="user", content=content)


def shown(messages: Sequence[Message], limit: int = MOST_CHARACTERS) -> str:
    """The conversation as text. Beyond `limit` characters whole steps are left out of its middle.

    The opening messages and the last step are always included.
    """
    turns = _turns(messages)
    texts = ["\n".join(map(_line, turn)) for turn in turns]
    head, kept, size = texts[:1], texts[1:], len(texts[0]) if texts else 0
    start = len(kept)
    for number in reversed(range(len(kept))):
        size += len(kept[number]) + 1
        if size > limit and start < len(kept):
            break
        start = number
    gap = [f"[{start} steps left out]"] if start else []
    return "\n".join([*head, *gap, *kept[start:]])


def _turns(messages: Sequence[Message]) -> list[list[Message]]:
    """The opening messages, then one list of messages for each step, which begins with the assistant's turn."""
    turns: list[list[Message]] = [[]] if messages else []
    for message in messages:
        if message.role == "assistant":
            turns.append([])
        turns[-1].append(message)
    return turns


def _line(message: Message) -> str:
    calls = "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
    return f"{message.role}: {message.text}{calls}"


@cache
def _instructions() -> str:
    return (files(__package__) / "prompts" / "select.txt").read_text(encoding="utf-8")


def _schema(ids: Sequence[str], k: int) -> dict[str, JsonValue]:
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "ids": {"type": "array", "items": {"type": "string", "enum": list(ids)}, "minItems": 1, "maxItems": k},
        },
        "required": ["rationale", "ids"],
        "additionalProperties": False,
    }


def _read(found: dict[str, Any], ids: frozenset[str], k: int) -> tuple[str, ...]:
    """The chosen ids. Raises ValueError for anything but 1 to `k` distinct ids of the library."""
    chosen = found.get("ids")
    if not isinstance(chosen, list) or not all(isinstance(i, str) for i in chosen):
        raise ValueError('"ids" is not a list of strings')
    if not 1 <= len(chosen) <= k:
        raise ValueError(f"{len(chosen)} ids, and 1 to {k} are asked for")
    if unknown := [i for i in chosen if i not in ids]:
        raise ValueError(f"{unknown[0][:40]!r} is no id of the library")
    if len(set(chosen)) < len(chosen):
        raise ValueError("an id stands there twice")
    return tuple(chosen)
