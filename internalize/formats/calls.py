"""Logs of single calls of a model, each with its whole request and response, as conversations.

The history of a call contains the calls before it. Only the longest conversations are episodes: a call is part of
another one if that one's request begins with its request and answer. Chat completions, Anthropic Messages and Responses
are distinguished by their fields. A file is read twice, so that only a hash of every call is in memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from internalize.errors import DataError
from internalize.records import Trajectory

from . import anthropic, responses
from .chat import answered
from .notes import Notes
from .reading import Located, Session, json_values
from .repairs import Raw, listed
from .wire import ChatMessage

_REQUESTS = ("request", "body", "params", "kwargs", "request_body")
_RESPONSES = ("response", "result", "completion", "response_body")
_SAME = ("id", "task", "env", "split", "iteration", "score", "reward", "error", "termination")


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are calls with their answers."""
    request, answer = _parts(head[0])
    return bool(answer) and bool({"messages", "input"} & request.keys())


def values(path: Path) -> Iterator[Located]:
    """The calls of a file that no later call continues, as chat lines. Raises DataError."""
    ends: dict[str, int] = {}
    parts: set[int] = set()
    for number, (_, value) in enumerate(json_values(path)):
        prefixes = _prefixes(value)
        parts |= {ends[prefix] for prefix in prefixes[:-1] if prefix in ends}
        if prefixes:
            ends[prefixes[-1]] = number
    for number, (where, value) in enumerate(json_values(path)):
        if number not in parts:
            yield where, value


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The trajectory of a call with its whole history. Raises DataError."""
    if not isinstance(value, Mapping):
        raise DataError("is no JSON object")
    yield from answered(as_chat(value, session.notes), session)


def longest(conversations: Sequence[Sequence[Any]]) -> list[int]:
    """The indices of the conversations with which no later one begins."""
    ends: dict[str, int] = {}
    parts: set[int] = set()
    for number, messages in enumerate(conversations):
        hashes = fingerprints(messages)
        parts |= {ends[one] for one in hashes[:-1] if one in ends}
        ends[hashes[-1] if hashes else ""] = number
    return [number for number in range(len(conversations)) if number not in parts]


def as_chat(value: Mapping[str, Any], notes: Notes) -> Raw:
    """A call as a line in the chat format. Raises DataError for a request or an answer of no known shape."""
    request, answer = _parts(value)
    if "messages" in request:
        messages = listed(anthropic.as_chat(request)["messages"])
        system = [{"role": "system", "content": request["system"]}] if request.get("system") else []
        messages = [*system, *messages] if isinstance(messages, list) else messages
    else:
        messages = responses.as_chat({**request, "output": []}, notes)["messages"]
    if not isinstance(messages, list):
        raise DataError("messages: is no list")
    line = {name: value[name] for name in _SAME if value.get(name) is not None}
    error = value.get("error") or answer.get("error")
    line |= {"model": answer.get("model") or request.get("model"), "tools": request.get("tools"), "error": error}
    return {**line, "messages": [*messages, *_answered(answer, notes)]}


def fingerprints(messages: Iterable[Any]) -> list[str]:
    """A hash after each message of a conversation; thoughts, ids and empty messages make no difference."""
    digest, found = sha256(), []
    for message in messages:
        try:
            one = ChatMessage.model_validate(message)
        except ValidationError:
            break
        texts = [one.content] if one.content.strip() else []
        calls = [f"{call.function.name} {_canonical(call.function.arguments)}" for call in one.tool_calls]
        for text in (*texts, *calls):
            digest.update(json.dumps([one.role, text]).encode())
        found.append(digest.hexdigest())
    return found


def _prefixes(value: object) -> list[str]:
    try:
        line = as_chat(value, Notes()) if isinstance(value, Mapping) else {}
    except DataError:
        return []  # told when it is read
    return fingerprints(line.get("messages", ()))


def _canonical(arguments: str) -> str:
    try:
        return json.dumps(json.loads(arguments), sort_keys=True)
    except (ValueError, RecursionError):
        return arguments


def _parts(value: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The request and the answer of a call; a missing one is an empty object."""
    request = _inner(value, _REQUESTS) or value
    answer = _inner(value, _RESPONSES) or {}
    request = _inner(request, ("body", "params", "json")) or request
    answer = _inner(answer, ("body", "message", "data")) or answer
    return request, answer


def _inner(value: Mapping[str, Any], names: Sequence[str]) -> Mapping[str, Any] | None:
    return next((value[name] for name in names if isinstance(value.get(name), Mapping)), None)


def _answered(answer: Mapping[str, Any], notes: Notes) -> list[Any]:
    """The turn of the model in an answer."""
    choices = answer.get("choices")
    if isinstance(choices, list):
        notes.dropped["further choice of an answer"] += max(0, len(choices) - 1)
        return [choice.get("message") for choice in choices[:1] if isinstance(choice, Mapping)]
    if isinstance(answer.get("output"), list):
        return responses.chat_messages(answer["output"], notes)
    if answer.get("role") == "assistant":
        return anthropic.chat_messages({"role": "assistant", "content": answer.get("content"), **_calls(answer)})
    if answer.get("error"):
        return []
    raise DataError("response: has no choices, no output and no content")


def _calls(answer: Mapping[str, Any]) -> Raw:
    return {"tool_calls": answer["tool_calls"]} if answer.get("tool_calls") else {}
