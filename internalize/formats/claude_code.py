"""Sessions of Claude Code: a record a line, in the order in which they were written.

- Sub-agents, what follows a compaction, and what follows a rewind are conversations of their own. Turns that a
  conversation shares with an earlier one, in the same or in another file, are copied context.
- The parts of one turn, which are logged apart, are one turn, and all its calls come before their results.
- Messages that the program wrote in the model's place are dropped, and so are records that are no messages.
- The system prompt and the tools are not in these logs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from internalize.records import Trajectory

from . import anthropic
from .reading import Session
from .repairs import Raw, kind_of
from .sessions import COPIED, Thread, episodes_of, records


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are records of a session."""
    return any("sessionId" in record and {"parentUuid", "uuid", "leafUuid"} & record.keys() for record in head)


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episodes of a session. Raises DataError."""
    conversations = _Conversations(session)
    for line, record in records(value, session):
        conversations.add(line, record)
    yield from episodes_of([c.thread for c in conversations.all], session, model=conversations.model)


class _Conversation:
    """A thread, with the position where each record and each turn of the model ends in it."""

    def __init__(self, thread: Thread) -> None:
        self.thread = thread
        self.end_of: dict[str, int] = {}  # by the uuid of a record
        self.turns: dict[str, int] = {}  # by the id of the model's message

    def insert(self, line: int, record: Raw, messages: list[Raw]) -> None:
        """Add what a record holds, beside the earlier parts of the same turn."""
        message = record["message"]
        turn = str(message.get("id") or "") if message.get("role") == "assistant" else ""
        place = self.turns.get(turn, len(self.thread.messages)) if turn else len(self.thread.messages)
        self.thread.messages[place:place] = messages
        self.thread.lines[place:place] = [line] * len(messages)
        self.turns = {name: end + len(messages) * (end > place) for name, end in self.turns.items()}
        self.end_of = {name: end + len(messages) * (end > place) for name, end in self.end_of.items()}
        if turn:
            self.turns[turn] = place + len(messages)
        self.end_of[_id(record)] = place + len(messages)


class _Conversations:
    """The conversations of one session as its records come."""

    def __init__(self, session: Session) -> None:
        self._seen, self._notes = session.seen, session.notes
        self.model: str | None = None
        self.all: list[_Conversation] = []
        self._of: dict[str, _Conversation] = {}  # by the uuid of each record
        self._main: _Conversation | None = None

    def add(self, line: int, record: Raw) -> None:
        kind, message = kind_of(record), record.get("message")
        parent = self._of.get(_parent(record))
        if kind not in {"user", "assistant"} or not isinstance(message, dict):
            self._notes.dropped[f"record of type {kind}"] += 1
            if parent:  # records point to those before them, whatever their type
                self._of[_id(record)] = parent
                parent.end_of[_id(record)] = parent.end_of[_parent(record)]
            return
        conversation = self._for(record, parent)
        self._of[_id(record)] = conversation
        conversation.insert(line, record, self._messages(record, message))

    def _messages(self, record: Raw, message: Raw) -> list[Raw]:
        if record.get("isApiErrorMessage") or message.get("model") == "<synthetic>":
            self._notes.dropped["message of the program in the model's place"] += 1
            return []
        found = anthropic.chat_messages(message)
        if message.get("role") == "assistant":
            self.model = message.get("model") or self.model
            if _id(record) in self._seen:
                found = [{**part, "left_out": COPIED} for part in found]
            self._seen.add(_id(record))
        return found

    def _for(self, record: Raw, parent: _Conversation | None) -> _Conversation:
        """The conversation that a record continues, or a new one."""
        if record.get("isCompactSummary"):
            self._main = self._new(Thread())
            return self._main
        if record.get("isSidechain"):
            return parent if parent and parent is not self._main else self._new(Thread())
        if parent is None:
            self._main = self._new(Thread()) if self._main is None or _begins(record) else self._main
        elif _is_typed(record) and self._rewinds(parent, record):
            self._main = self._new(parent.thread.copied(parent.end_of[_parent(record)]))
        else:
            self._main = parent
        return self._main

    def _new(self, thread: Thread) -> _Conversation:
        self.all.append(_Conversation(thread))
        return self.all[-1]

    def _rewinds(self, parent: _Conversation, record: Raw) -> bool:
        """Whether anything but tool results already follows the record that this message answers."""
        later = parent.thread.messages[parent.end_of[_parent(record)] :]
        return any(message.get("role") != "tool" for message in later)


def _id(record: Raw) -> str:
    """What other records know a record by; one without a name is known to none."""
    return str(record.get("uuid") or id(record))


def _parent(record: Raw) -> str:
    return str(record.get("parentUuid") or "")


def _begins(record: Raw) -> bool:
    return record.get("parentUuid") is None and _is_typed(record)


def _is_typed(record: Raw) -> bool:
    """Whether a record is a message that the user typed, not results of tools."""
    content = record["message"].get("content")
    blocks = content if isinstance(content, list) else []
    kinds = {kind_of(block) for block in blocks}
    return record.get("type") == "user" and "tool_result" not in kinds and not record.get("isMeta")
