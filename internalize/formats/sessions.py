"""The common part of session logs: a file is one session with a record a line, and an error names its line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internalize.errors import DataError
from internalize.records import Trajectory

from .chat import from_line
from .reading import Located, Session, json_values
from .repairs import Raw

_MESSAGE = re.compile(r"messages\.(\d+)")
COPIED = "copied context"


@dataclass
class Thread:
    """One conversation of a session in the chat format; a message has the number of its line."""

    messages: list[Any] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    hidden: str = ""  # why its further turns are context only

    def add(self, line: int, *messages: Any) -> None:
        """Append the content of one line."""
        for message in messages:
            unlearnt = self.hidden and message.get("role") == "assistant"
            self.messages.append({**message, "left_out": self.hidden} if unlearnt else message)
        self.lines += [line] * len(messages)

    def copied(self, end: int | None = None) -> Thread:
        """The messages before `end` as context that is not learnt again."""
        marked = [
            {**m, "left_out": m.get("left_out") or COPIED} if m.get("role") == "assistant" else m
            for m in self.messages[:end]
        ]
        return Thread(marked, self.lines[:end])

    @property
    def answered(self) -> bool:
        """Whether an assistant's turn that may be learnt or not, but is not copied, follows a message of the user."""
        roles = [m.get("role") for m in self.messages]
        turns = [n for n, m in enumerate(self.messages) if roles[n] == "assistant" and m.get("left_out") != COPIED]
        return "user" in roles[: max(turns, default=0)]


def session_values(path: Path) -> Iterator[Located]:
    """The one session of a file: its records with their lines, or a DataError in place of one."""
    found = [(int(where.removeprefix("line ") or 0), value) for where, value in json_values(path)]
    yield "", found


def records(found: Sequence[tuple[int, Any]], session: Session) -> Iterator[tuple[int, Raw]]:
    """The records that are objects, with their lines. Raises DataError for a line that cannot be read."""
    for line, value in found:
        if isinstance(value, Mapping):
            yield line, dict(value)
        else:
            error = value if isinstance(value, DataError) else DataError("is no JSON object")
            session.leave_out(error, f"line {line}")


def episodes_of(threads: Sequence[Thread], session: Session, **more: Any) -> Iterator[Trajectory]:
    """An episode for each conversation with an answer. Raises DataError naming line and field."""
    for thread in threads:
        if not thread.answered:
            session.notes.dropped["conversation without an answer"] += bool(thread.messages)
            continue
        messages = _with_text_for_strangers(thread.messages, session)
        try:
            yield from_line({**more, "messages": messages}, session)
        except DataError as error:
            place = _MESSAGE.match(str(error))
            line = thread.lines[int(place[1])] if place and int(place[1]) < len(thread.lines) else thread.lines[0]
            session.leave_out(error, f"line {line}")


def _with_text_for_strangers(messages: Sequence[Any], session: Session) -> list[Any]:
    """Results that answer no open call of the turn before, as text of the user: a session may have lost the call."""
    found: list[Any] = []
    open_calls: set[str] = set()
    for number, message in enumerate(messages):
        role = message.get("role")
        if role == "assistant":
            goes_on = number > 0 and messages[number - 1].get("role") == "assistant"
            ids = {str(call.get("id")) for call in message.get("tool_calls") or ()}
            open_calls = open_calls | ids if goes_on else ids
        if role == "tool" and str(message.get("tool_call_id")) not in open_calls:
            session.notes.repaired["result of no call of the turn before, kept as text"] += 1
            message = {"role": "user", "content": message.get("content")}  # noqa: PLW2901
        elif role == "tool":
            open_calls = open_calls - {str(message.get("tool_call_id"))}
        found.append(message)
    return found
