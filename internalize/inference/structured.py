"""Ask a chat model for one JSON object, check it, and ask again with what was wrong.

Left out: what is asked and what the answer means (selectors, judges), retries of requests (endpoints). What must
not change: an answer counts only after the caller's own reader accepted it, whatever schema the server obeyed; an
answer that was cut off is never read; tokens of refused answers are counted too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import JsonValue

from internalize.interfaces import ChatModel
from internalize.records import ChatRequest, Message, Reply, content_hash

T = TypeVar("T")
_BLOCK = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)
AGAIN = "That answer is not valid: {problem}. Answer again, with the JSON object alone."


@dataclass(frozen=True)
class Answer(Generic[T]):
    """`value` None = no valid answer in all tries; `problem` is then what was wrong with the last one."""

    value: T | None
    problem: str
    replies: tuple[Reply, ...]


async def ask(
    chat: ChatModel,
    messages: Sequence[Message],
    schema: Mapping[str, JsonValue],
    read: Callable[[dict[str, Any]], T],
    *,
    tries: int = 3,
    max_tokens: int = 256,
) -> Answer[T]:
    """The first answer that `read` accepts, at temperature 0.

    `read` raises ValueError with a few words on what is wrong. Raises InfrastructureError and Incomplete as
    `ChatModel.complete` does.
    """
    talk, replies, problem = tuple(messages), [], "no answer"
    for number in range(tries):
        request = ChatRequest(messages=talk, response_schema=dict(schema), max_tokens=max_tokens, seed=number)
        reply = await chat.complete(request)
        replies.append(reply)
        try:
            return Answer(read(_object(reply)), "", tuple(replies))
        except ValueError as error:
            problem = str(error)
        refusal = Message(role="user", content=AGAIN.format(problem=problem))
        talk = (*messages, Message(role="assistant", content=reply.text), refusal)
    return Answer(None, problem, tuple(replies))


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
    """The reasoning that a text begins with ("" if there is none), and the rest. Reasoning that is cut off has no rest.

    Some chat templates put <think> into the prompt, so that only </think> is sampled. It counts at the end of a line
    alone, where no string of a JSON answer can hold it.
    """
    opened = text.lstrip().removeprefix("<think>")
    if opened != text.lstrip():
        reasoning, _, rest = opened.partition("</think>")
        return reasoning.strip(), rest.lstrip()
    reasoning, closed, rest = text.partition("</think>\n")
    return (reasoning.strip(), rest.lstrip()) if closed and "<think>" not in reasoning else ("", text)


def fenced(name: str, text: str) -> str:
    """`text` between tags that it cannot close itself: their names end in a hash of the text."""
    tag = f"{name}-{content_hash([name, text])[:8]}"
    return f"<{tag}>\n{text}\n</{tag}>"


class CleanedChat:
    """A chat model that is shown texts only after `clean`, which takes secrets out."""

    def __init__(self, chat: ChatModel, clean: Callable[[str], str]) -> None:
        self.name = chat.name
        self._chat, self._clean = chat, clean

    async def complete(self, request: ChatRequest) -> Reply:
        """The answer to the cleaned messages. Raises what the chat model raises."""
        shown = tuple(m.model_copy(update={"content": self._clean(m.content)}) for m in request.messages)
        return await self._chat.complete(request.model_copy(update={"messages": shown}))
