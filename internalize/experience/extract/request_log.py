"""Every answer of a language model, written down before it is used, so that no question is asked twice.

A question is known by the hash of who is asked and all that is sent. A killed extraction goes through the same
questions again and finds its answers in extraction.jsonl. Left out: what is asked (llm.py), the reading of answers
(asking.py), retries of requests (the chat model). What must not change: a failure of the infrastructure writes
nothing, so that its question stays owed; equal questions asked at the same time are one request. Waiting for the
disk keeps nobody else waiting: answers that come in meanwhile are written together.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from internalize.interfaces import ChatModel
from internalize.records import ChatRequest, Record, Reply, content_hash
from internalize.runs.store import append_jsonl, read_jsonl, recover

Stage = Literal["summary", "learn", "reconcile", "consolidate", "again"]
WARMTH = 0.7  # temperature of a later round: at 0 the same unusable answers would come back


class Entry(Record):
    """One finished request; or, without a key, a note.

    A note with `refused` says why no answer about its subject could be used; one with the stage "again" that what was
    refused before it is asked anew.
    """

    key: str = ""
    stage: Stage
    subject: str = ""  # the task, trajectory or batch it was about
    reply: Reply = Reply(text="")
    refused: str = ""


@dataclass
class Ledger:
    """The answers of one extraction. A chat model's name stands for its weights: other weights, another file."""

    path: Path
    chat: ChatModel
    rounds: int = 0  # notes "again"
    _entries: list[Entry] = field(default_factory=list)
    _refused: set[tuple[Stage, str]] = field(default_factory=set)  # since the last of them
    _known: dict[str, Reply] = field(default_factory=dict)
    _asking: dict[str, asyncio.Task[Reply]] = field(default_factory=dict)
    _unwritten: list[Entry] = field(default_factory=list)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _file: threading.Lock = field(default_factory=threading.Lock)

    @staticmethod
    def open(path: Path, chat: ChatModel) -> Ledger:
        """The ledger in `path` with the answers it has; a torn last line is cut off."""
        recover(path)
        ledger = Ledger(path, chat)
        for entry in read_jsonl(path, Entry) if path.exists() else []:
            ledger._take(entry)
        return ledger

    def about(self, stage: Stage, subject: str) -> Recorded:
        """The chat model, its answers noted under `stage` and `subject`."""
        return Recorded(self, stage, subject, self.chat.name)

    def refuse(self, stage: Stage, subject: str, reason: str) -> None:
        """Note, once a round, that no answer about `subject` could be used."""
        if (stage, subject) not in self._refused:
            self._append(Entry(stage=stage, subject=subject, refused=reason))

    def ask_again(self) -> None:
        """Have a resumed extraction ask once more, and warmer, about all that was refused."""
        self._append(Entry(stage="again"))

    @property
    def requests(self) -> list[Reply]:
        """Every answer so far."""
        return [entry.reply for entry in self._entries if entry.key]

    def _append(self, entry: Entry) -> None:
        self._write([entry])
        self._take(entry)

    async def _keep(self, entry: Entry) -> None:
        """Return when the entry is on disk, written by whoever had the first turn since it came."""
        self._unwritten.append(entry)
        async with self._turn:
            batch, self._unwritten = self._unwritten, []
            try:
                await asyncio.to_thread(self._write, batch)
            except BaseException:
                self._unwritten = [*batch, *self._unwritten]  # or others would take theirs for written
                raise
        self._take(entry)

    def _write(self, entries: Sequence[Entry]) -> None:
        with self._file:
            append_jsonl(self.path, entries)

    def _take(self, entry: Entry) -> None:
        self._entries.append(entry)
        if entry.key:
            self._known[entry.key] = entry.reply
        elif entry.refused:
            self._refused.add((entry.stage, entry.subject))
        else:
            self.rounds += 1
            for past in self._entries:
                if (past.stage, past.subject) in self._refused:
                    self._known.pop(past.key, None)
            self._refused.clear()

    async def reply(self, asked: ChatRequest, stage: Stage, subject: str) -> Reply:
        """The answer on file, the one that is being waited for, or a new one."""
        key = content_hash([self.chat.name, asked.model_dump(mode="json")])
        if key in self._known:
            return self._known[key]
        if key not in self._asking:
            self._asking[key] = asyncio.create_task(self._request(key, asked, stage, subject))
        return await asyncio.shield(self._asking[key])

    async def _request(self, key: str, asked: ChatRequest, stage: Stage, subject: str) -> Reply:
        try:
            if self.rounds:
                asked = asked.model_copy(update={"temperature": WARMTH, "seed": asked.seed + self.rounds})
            reply = await self.chat.complete(asked)
            await self._keep(Entry(key=key, stage=stage, subject=subject, reply=reply))
        finally:
            del self._asking[key]
        return reply


@dataclass
class Recorded:
    """`interfaces.ChatModel` that answers out of a ledger as far as it can."""

    ledger: Ledger
    stage: Stage
    subject: str
    name: str  # of the model behind

    async def complete(self, request: ChatRequest) -> Reply:
        """One answer, asked for only if the ledger does not hold it."""
        return await self.ledger.reply(request, self.stage, self.subject)
