"""A chat model whose replies are kept in a file, so that no answered request is ever paid for twice."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from internalize.errors import DataError
from internalize.interfaces import ChatModel
from internalize.records import ChatRequest, Record, Reply, content_hash
from internalize.runs.store import append_jsonl, exclusive, first_problem


class CachedReply(Record):
    """One line of the file. Either the reply to the request with this hash, or why that reply is rejected."""

    key: str
    reply: Reply | None = None
    seconds: float = 0.0
    rejected: str = ""


class CachedChat:
    """Asks `chat` only for what the JSON Lines file `path` does not hold. None keeps the replies in memory alone.

    A reply is on disk before it is returned. A failed request writes nothing, so it is asked again. Equal requests at
    the same time are one request. Processes may share the file: each finds the replies of the others, and of two
    replies to one request all use the first. `checkpoint` names the weights behind `chat` where its name does not.

    A rejected reply is asked for again, unless `replay_rejected`: then it is returned like any other.
    """

    def __init__(
        self, chat: ChatModel, path: Path | None, *, checkpoint: str = "", replay_rejected: bool = False
    ) -> None:
        self.name = chat.name
        self.replies: list[Reply] = []  # all that are in the file, rejected ones too
        self._chat, self._path, self._checkpoint, self._replay_rejected = chat, path, checkpoint, replay_rejected
        self._known: dict[str, Reply] = {}
        self._rejected: set[str] = set()
        self._pending: dict[str, asyncio.Task[Reply]] = {}
        self._unwritten: deque[CachedReply] = deque()
        self._lock = threading.Lock()  # of everything that is read from the file
        self._position = 0  # in the file: what lies before it is known
        if path and path.exists():
            with exclusive(path):
                self._read()

    async def complete(self, request: ChatRequest) -> Reply:
        """The reply on file, the one that is being waited for, or a new one. Raises what the chat model raises."""
        key = self._key(request)
        if not self._usable(key):
            self._look_for_replies_of_others()
        if self._usable(key):
            return self._known[key]
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._ask(key, request))
        return await asyncio.shield(self._pending[key])  # others may wait for it too

    async def reject(self, requests: Iterable[ChatRequest], reason: str) -> None:
        """Note that the replies to these requests are no use."""
        keys = [key for key in map(self._key, requests) if key not in self._rejected]
        if keys:
            await self._keep([CachedReply(key=key, rejected=reason) for key in keys])

    def _key(self, request: ChatRequest) -> str:
        return content_hash([self.name, self._checkpoint, request.model_dump(mode="json")])

    def _usable(self, key: str) -> bool:
        return key in self._known and (self._replay_rejected or key not in self._rejected)

    async def _ask(self, key: str, request: ChatRequest) -> Reply:
        started = time.monotonic()
        try:
            reply = await self._chat.complete(request)
            line = CachedReply(key=key, reply=reply, seconds=round(time.monotonic() - started, 4))
            await self._keep([line])
            return self._known[key]  # which is another process's if that was first
        finally:
            del self._pending[key]

    async def _keep(self, lines: Sequence[CachedReply]) -> None:
        """Return when `lines` are on disk. Those that come while a thread waits for the disk are written together."""
        self._unwritten.extend(lines)
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        with self._lock:
            batch = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
            try:
                self._append(batch)
            except BaseException:
                self._unwritten.extendleft(reversed(batch))  # or others would take theirs for written
                raise

    def _append(self, batch: Sequence[CachedReply]) -> None:
        if self._path is None:
            for line in batch:
                self._take(line)
        elif batch:
            with exclusive(self._path):
                append_jsonl(self._path, batch)
                self._read()

    def _look_for_replies_of_others(self) -> None:
        """Read on, unless a thread is writing: it reads on itself, and waiting for it would stop the event loop."""
        if self._path and self._path.exists() and self._lock.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._lock.release()

    def _read(self) -> None:
        """Take the whole lines that have been added to the file. Raises DataError for one that cannot be read."""
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole, end, _ = file.read().rpartition(b"\n")  # what follows is being written by another process
        for line in whole.split(b"\n") if end else ():
            try:
                self._take(CachedReply.model_validate_json(line))
            except ValidationError as error:
                raise DataError(f"{self._path}: a line is no cached reply ({first_problem(error)})") from error
        self._position += len(whole) + len(end)

    def _take(self, line: CachedReply) -> None:
        if line.reply is None:
            self._rejected.add(line.key)
            return
        self.replies.append(line.reply)
        if line.key not in self._known or line.key in self._rejected:
            self._known[line.key] = line.reply
        self._rejected.discard(line.key)


async def reject(chat: ChatModel, requests: Iterable[ChatRequest], reason: str) -> None:
    """Have a chat model that keeps replies ask again for those to these requests; any other keeps none."""
    if isinstance(chat, CachedChat):
        await chat.reject(requests, reason)
