"""Requests one JSON object from a chat model, validates it, and repeats the request with the validation error.

The caller's own reader validates every reply, whatever schema the server enforces; a truncated reply is never read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from internalize.interfaces import ChatModel
from internalize.records import ChatRequest, Message, Reply, content_hash

from .cached import reject

T = TypeVar("T")
_BLOCK = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
AGAIN = "That answer is not valid: {problem}. Answer again, with the JSON object alone."


@dataclass(frozen=True)
class Answer(Generic[T]):
    """`value` None = no reply to any of the `requests` was valid; `problem` says why the last one was not."""

    value: T | None
    problem: str
    requests: tuple[ChatRequest, ...]


async def ask(
    chat: ChatModel, request: ChatRequest, read: Callable[[dict[str, Any]], T], *, tries: int = 3
) -> Answer[T]:
    """The first reply that `read` accepts, with another seed at each try. If there is none, a cache rejects them all.

    `read` raises ValueError with a few words on what is wrong. Raises what `ChatModel.complete` raises.
    """
    requests, problem = [request], "no answer"
    for number in range(1, tries + 1):
        reply = await chat.complete(requests[-1])
        try:
            return Answer(read(_object(reply)), "", tuple(requests))
        except ValueError as error:
            problem = str(error)
        if number < tries:
            invalid = Message(role="assistant", content=reply.text)
            correction = Message(role="user", content=AGAIN.format(problem=problem))
            update = {"messages": (*request.messages, invalid, correction), "seed": request.seed + number}
            requests.append(request.model_copy(update=update))
    await reject(chat, requests, problem)
    return Answer(None, problem, tuple(requests))


def _object(reply: Reply) -> dict[str, Any]:
    """The JSON object of a reply, alone or in one code block. Raises ValueError for anything else."""
    if reply.finish == "length":
        raise ValueError("it is too long and was cut off")
    block = _BLOCK.fullmatch(reply.text)
    try:
        found = json.loads(block[1] if block else reply.text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError("it is not JSON") from error
    if not isinstance(found, dict):
        raise ValueError("it is not a JSON object")  # noqa: TRY004 - the reader's one kind of refusal
    return found


def split_reasoning(text: str) -> tuple[str, str]:
    """The reasoning at the start of a text ("" if there is none), and the rest, which truncated reasoning lacks.

    Some chat templates put <think> into the prompt, so that only </think> is sampled. It counts only at the end of a
    line, which cannot occur inside a string of a JSON answer.
    """
    opened = text.lstrip().removeprefix("<think>")
    if opened != text.lstrip():
        reasoning, _, rest = opened.partition("</think>")
        return reasoning.strip(), rest.lstrip()
    reasoning, closed, rest = text.partition("</think>\n")
    return (reasoning.strip(), rest.lstrip()) if closed and "<think>" not in reasoning else ("", text)


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
