"""Requests one JSON object from a chat model, validates it, and repeats the request with the validation error.

The caller's own reader validates every reply, whatever schema the server enforces; a truncated reply is never read, and
the next request allows more tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from internalize.errors import ContextError, Declined
from internalize.interfaces import ChatModel
from internalize.records import ChatRequest, Message, Reply, content_hash

from .cached import reject
from .client import Refused

T = TypeVar("T")
_BLOCK = re.compile(r"```[ \t]*\w*\s*(\{.*?\})\s*```", re.DOTALL)
_LINE_START = re.compile(r"^\s*(?=\{)", re.MULTILINE)
_TAGS = r"think|thinking|thought|reasoning"
_REASONING = re.compile(
    rf"<({_TAGS})>.*?(?:</\1>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)|◁think▷.*?(?:◁/think▷|\Z)|\A.*?</(?:{_TAGS})>",
    re.DOTALL,
)
_GROWTH = 4  # factor on the token limit after an answer that was cut off
AGAIN = "That answer is not valid: {problem}. Answer again, with the JSON object alone."


@dataclass(frozen=True)
class Answer(Generic[T]):
    """`value` None = no reply to any of the `requests` was valid; `problem` says why the last one was not.

    `kind` names the problem: invalid, empty, cut off or refused.
    """

    value: T | None
    problem: str
    requests: tuple[ChatRequest, ...]
    kind: str = ""


class Unusable(ValueError):  # noqa: N818 - an outcome of reading
    """A reply that holds no JSON object; the message says why."""

    def __init__(self, problem: str, kind: str = "invalid") -> None:
        super().__init__(problem)
        self.kind = kind


async def ask(
    chat: ChatModel, request: ChatRequest, read: Callable[[dict[str, Any]], T], *, tries: int = 3
) -> Answer[T]:
    """The first reply that `read` accepts, with another seed at each try. If there is none, a cache rejects them all.

    `read` raises ValueError with a short problem. Raises what `ChatModel.complete` raises, except for declined content,
    which is an answer without a value.
    """
    requests, problem, kind = [request], "no answer", "invalid"
    for number in range(1, tries + 1):
        asked = requests[-1]
        try:
            reply = await chat.complete(asked)
            return Answer(read(_object(reply)), "", tuple(requests))
        except Declined as error:
            problem, kind = str(error), "refused"
            break
        except (ContextError, Refused):
            if asked.max_tokens == request.max_tokens:
                raise
            break  # no room for a longer answer: the problem is still that it was cut off
        except ValueError as error:
            problem, kind = str(error), error.kind if isinstance(error, Unusable) else "invalid"
        if number < tries:
            requests.append(_next(request, asked, reply, problem, number))
    await reject(chat, requests, problem)
    return Answer(None, problem, tuple(requests), kind)


def _next(first: ChatRequest, last: ChatRequest, reply: Reply, problem: str, number: int) -> ChatRequest:
    """The request after an unusable reply: with more tokens if it was cut off, else with the problem."""
    update: dict[str, Any] = {"seed": first.seed + number, "max_tokens": last.max_tokens}
    if reply.finish == "length":
        update["max_tokens"] *= _GROWTH
    else:
        invalid = Message(role="assistant", content=reply.text)
        correction = Message(role="user", content=AGAIN.format(problem=problem))
        update["messages"] = (*first.messages, invalid, correction)
    return first.model_copy(update=update)


def _object(reply: Reply) -> dict[str, Any]:
    """The JSON object of a reply: its whole text, or the only object in a block of code or at the start of a line.

    Reasoning does not count. Raises Unusable for anything else.
    """
    if reply.finish == "refused":
        raise Unusable(f"it is a refusal ({' '.join(reply.text.split())[:200] or 'without words'})", "refused")
    if reply.finish == "length":
        raise Unusable("it is too long and was cut off", "cut off")
    whole = _parsed(reply.text)
    if whole is None:
        answer = _REASONING.sub("", reply.text).strip()
        if not answer:
            raise Unusable("it is empty" if not reply.text.strip() else "it is reasoning alone", "empty")
        found = [each for each in map(_parsed, _BLOCK.findall(answer)) if isinstance(each, dict)] or _on_lines(answer)
        if len(found) > 1:
            raise Unusable("it holds more than one JSON object")
        whole = found[0] if found else _parsed(answer)
    if whole is None:
        raise Unusable("it is not JSON")
    if not isinstance(whole, dict):
        raise Unusable("it is not a JSON object")
    return whole


def _parsed(text: str) -> Any:
    """The JSON value of a text, whose strings may hold bare line breaks; None if there is no value."""
    try:
        return json.loads(text, strict=False)
    except (json.JSONDecodeError, RecursionError):
        return None


def _on_lines(text: str) -> list[dict[str, Any]]:
    """The JSON objects that begin a line; an object inside a sentence may be a quotation."""
    decoder = json.JSONDecoder(strict=False)
    found: list[dict[str, Any]] = []
    end = 0
    for place in (match.end() for match in _LINE_START.finditer(text)):
        while place >= end and text.startswith("{", place):
            try:
                value, end = decoder.raw_decode(text, place)
            except (json.JSONDecodeError, RecursionError):
                break
            found.append(value)
            place = end + len(text[end:]) - len(text[end:].lstrip(" "))  # noqa: PLW2901 - another on the same line
    return found


def fenced(name: str, text: str) -> str:
    """`text` between tags that it cannot contain, because their names end in a hash of the text."""
    tag = f"{name}-{content_hash([name, text])[:8]}"
    return f"<{tag}>\n{text}\n</{tag}>"


class CleanedChat:
    """A chat model whose requests pass through `clean`, which removes secrets."""

    def __init__(self, chat: ChatModel, clean: Callable[[str], str]) -> None:
        self.name = chat.name
        self._chat, self._clean = chat, clean

    async def complete(self, request: ChatRequest) -> Reply:
        """The reply to the cleaned messages. Raises what the chat model raises."""

        def cleaned(message: Message) -> Message:
            calls = tuple(c.model_copy(update={"arguments": self._clean(c.arguments)}) for c in message.tool_calls)
            texts = {"content": self._clean(message.text), "reasoning": self._clean(message.reasoning)}
            return message.model_copy(update={**texts, "tool_calls": calls})

        messages = tuple(map(cleaned, request.messages))
        return await self._chat.complete(request.model_copy(update={"messages": messages}))
