"""Trajectories of SWE-agent (`.traj`) and mini-swe-agent: one JSON document for each attempt at an instance.

SWE-agent keeps what the model saw in `history`; demonstrations in it are context. These files hold no score.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from internalize.errors import DataError
from internalize.records import Trajectory

from .chat import answered
from .reading import Session
from .repairs import Raw
from .responses import chat_messages


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file is a trajectory of SWE-agent."""
    first = head[0]
    return "attempts" in first or isinstance(first.get("history"), list) or {"trajectory", "info"} <= first.keys()


def recognizes_mini(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file is a trajectory of mini-swe-agent."""
    first = head[0]
    known = str(first.get("trajectory_format", "")).startswith("mini-swe-agent")
    return known or ("info" in first and "messages" in first and "exit_status" in _mapping(first["info"]))


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episode of a document, or one for each of its attempts. Raises DataError."""
    attempts = value.get("attempts") if isinstance(value, Mapping) else None
    for attempt in attempts if isinstance(attempts, list) else [value]:
        yield from _episode(attempt, session)


def _episode(value: Any, session: Session) -> Iterator[Trajectory]:
    history = value.get("history") if isinstance(value, Mapping) else None
    if not isinstance(history, list):
        raise DataError("history: field required")
    info = _mapping(value.get("info"))
    line = {"task": value.get("instance_id"), "termination": _exit(info)}
    yield from answered({**line, "messages": [_message(message) for message in history]}, session)


def read_mini(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episode of a document. Raises DataError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("messages"), list):
        raise DataError("messages: field required")
    info = _mapping(value.get("info"))
    model = _mapping(_mapping(info.get("config")).get("model")).get("model_name")
    messages = [one for message in value["messages"] for one in _mini_messages(message, session)]
    line = {"task": value.get("instance_id"), "model": model, "termination": _exit(info), "messages": messages}
    yield from answered(line, session)


def _mini_messages(message: Any, session: Session) -> list[Any]:
    """A message, or the messages of an answer in the format of Responses."""
    if isinstance(message, Mapping) and isinstance(message.get("output"), list) and "role" not in message:
        return chat_messages(message["output"], session.notes)
    if isinstance(message, Mapping) and "role" not in message and "type" in message:
        return chat_messages([message], session.notes)
    return [message]


def _message(message: Any) -> Raw:
    """A message of a history; one result names its call in a list."""
    if not isinstance(message, Mapping):
        raise DataError("history: holds what is no message")
    found = {name: message[name] for name in ("role", "content", "tool_calls", "weight") if name in message}
    ids = message.get("tool_call_ids")
    if message.get("role") == "tool" and isinstance(ids, list) and len(ids) == 1:
        found["tool_call_id"] = ids[0]
    if isinstance(thinking := message.get("thinking_blocks"), list):
        found["reasoning_content"] = "\n".join(str(_mapping(block).get("thinking", "")) for block in thinking)
    if message.get("is_demo") and message.get("role") == "assistant":
        found["left_out"] = "part of a demonstration"
    return found


def _exit(info: Mapping[str, Any]) -> object:
    """Why the agent stopped; `submitted (exit_cost)` is a limit that was met, with what there was submitted."""
    status = str(info.get("exit_status") or "")
    return status.partition("(")[2].rstrip(")") or status


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
