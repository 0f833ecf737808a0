"""Selection by a language model: the policy itself or an endpoint.

The prompt is library first, conversation last, so that a server that keeps prefixes reads the library once. Left
out: requests and their retries (the chat model). What must not change: for one pool and k the prompt is byte-identical
up to the conversation; the conversation is the clean one; an id outside the library is never served; a failure falls
to the lexical selector and says so. A spent budget is no failure: it stops the stage (Incomplete).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from pydantic import JsonValue

from internalize.errors import ContextError, InfrastructureError
from internalize.inference.structured import Answer, ask, fenced
from internalize.interfaces import ChatModel, Selector
from internalize.records import Experience, Message, content_hash

from .lexical import LexicalSelector
from .log import Selection, SelectionLog

MOST_CHARACTERS = 12_000  # of a conversation: some 3,000 tokens
ANSWER_TOKENS = 256


class Chosen(NamedTuple):
    """A valid answer."""

    ids: tuple[str, ...]
    rationale: str


class LLMSelector:
    """Asks `chat` for 1 to k ids; after `tries` answers without a valid one `fallback` serves.

    `served_by` is "llm:NAME", "all" (the pool holds at most k items: nothing to ask) or "lexical after llm failed:
    KIND", KIND being `invalid` (no valid answer), `unreachable` (no answer) or `too long` (for the model's context).
    `weights` is the id of the weights behind `chat` if they change: a selection found in `log` is used only for the
    same weights.
    """

    def __init__(
        self,
        chat: ChatModel,
        *,
        fallback: Selector | None = None,
        tries: int = 3,
        log: SelectionLog | None = None,
        weights: str = "",
    ) -> None:
        self._chat, self._tries, self._weights = chat, tries, weights
        self._fallback = fallback or LexicalSelector()
        self.log = log or SelectionLog()
        self._under_way: dict[str, asyncio.Lock] = {}

    async def select(
        self, messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> tuple[tuple[str, ...], str]:
        """At most `k` ids, best first, and who served. Raises Incomplete when the endpoint's budget is spent."""
        if len(items) <= k:
            return tuple(item.id for item in items), "all"
        asked = prompt(messages, items, k)
        name = content_hash([self._chat.name, self._weights, *(m.content for m in asked)])
        lock = self._under_way.setdefault(name, asyncio.Lock())  # attempts of a task start with the same request
        try:
            async with lock:
                made = self.log.get(name)
                if made is None:
                    made = await self._made(name, asked, messages, items, k)
                    self.log.add(made)
        finally:
            self._under_way.pop(name, None)
        return made.item_ids, made.served_by

    async def _made(
        self, name: str, asked: Sequence[Message], messages: Sequence[Message], items: Sequence[Experience], k: int
    ) -> Selection:
        """The model's selection, or the fallback's with the reason."""
        started = time.monotonic()
        answer, failure = await self._answer(asked, frozenset(item.id for item in items), k)
        if answer.value:
            chosen, served_by = answer.value, f"llm:{self._chat.name}"
        else:
            found, fallback = await self._fallback.select(messages, items, k)
            chosen, served_by = Chosen(found, ""), f"{fallback} after llm failed: {failure.partition(':')[0]}"
        return Selection(
            id=name,
            item_ids=chosen.ids,
            served_by=served_by,
            rationale=chosen.rationale,
            failure=failure,
            tries=len(answer.replies),
            prompt_tokens=sum(reply.prompt_tokens for reply in answer.replies),
            cached_tokens=sum(reply.cached_tokens for reply in answer.replies),
            completion_tokens=sum(reply.completion_tokens for reply in answer.replies),
            seconds=round(time.monotonic() - started, 4),
        )

    async def _answer(self, asked: Sequence[Message], ids: frozenset[str], k: int) -> tuple[Answer[Chosen], str]:
        """The answer, and "" or why there is none."""
        try:
            answer = await ask(
                self._chat,
                asked,
                _schema(sorted(ids), k),
                lambda found: _read(found, ids, k),
                tries=self._tries,
                max_tokens=ANSWER_TOKENS,
            )
        except InfrastructureError as error:
            kind = "too long" if isinstance(error, ContextError) else "unreachable"
            return Answer(None, "", ()), f"{kind}: {error}"
        return answer, f"invalid: {answer.problem}" if answer.problem else ""


def prompt(messages: Sequence[Message], items: Sequence[Experience], k: int) -> tuple[Message, Message]:
    """What is asked at one decision: instructions, then library and conversation."""
    ordered = sorted(items, key=lambda item: (item.iteration, item.id))  # however the pool holds them
    library = "\n".join(f"[{item.id}] {' '.join(item.text.split())}" for item in ordered)
    content = f"Library:\n{fenced('library', library)}\n\nConversation:\n{fenced('conversation', shown(messages))}"
    return Message(role="system", content=_instructions().replace("{k}", str(k))), Message(role="user", content=content)


def shown(messages: Sequence[Message], limit: int = MOST_CHARACTERS) -> str:
    """The conversation as text. Beyond `limit` characters whole steps are left out of its middle.

    The opening messages and the last step are always there.
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
    """The opening messages, then one list a step, which begins with what the assistant said."""
    turns: list[list[Message]] = [[]] if messages else []
    for message in messages:
        if message.role == "assistant":
            turns.append([])
        turns[-1].append(message)
    return turns


def _line(message: Message) -> str:
    calls = "".join(f" {call.name}({call.arguments})" for call in message.tool_calls)
    return f"{message.role}: {message.content}{calls}"


@cache
def _instructions() -> str:
    return (files(__package__) / "prompts" / "select.txt").read_text(encoding="utf-8")


def _schema(ids: Sequence[str], k: int) -> Mapping[str, JsonValue]:
    return {
        "type": "object",
        "properties": {
            "rationale": {"type": "string"},
            "ids": {"type": "array", "items": {"type": "string", "enum": list(ids)}, "minItems": 1, "maxItems": k},
        },
        "required": ["rationale", "ids"],
        "additionalProperties": False,
    }


def _read(found: dict[str, Any], ids: frozenset[str], k: int) -> Chosen:
    """Raises ValueError for anything but 1 to `k` distinct ids of the library."""
    chosen, rationale = found.get("ids"), found.get("rationale", "")
    if not isinstance(chosen, list) or not all(isinstance(i, str) for i in chosen):
        raise ValueError('"ids" is not a list of strings')
    if not 1 <= len(chosen) <= k:
        raise ValueError(f"{len(chosen)} ids, and 1 to {k} are asked for")
    if unknown := [i for i in chosen if i not in ids]:
        raise ValueError(f"{unknown[0][:40]!r} is no id of the library")
    if len(set(chosen)) < len(chosen):
        raise ValueError("an id stands there twice")
    return Chosen(tuple(chosen), rationale if isinstance(rationale, str) else "")
