"""A chat model with a cache of replies in a file, so that no request is ever paid for twice."""

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
    """One line of the file: the reply to the request with the hash `key`, or why that reply was rejected."""

    key: str
    reply: Reply | None = None
    seconds: float = 0.0
    rejected: str = ""


class CachedChat:
    """Sends to `chat` only requests without a reply in the JSON Lines file `path`. With None the cache is in memory.

    A reply is on disk before it is returned. A failed request writes nothing, so it is sent again. Equal concurrent
    requests are sent once. Processes may share the file: each finds the replies of the others, and of two replies to
    one request all use the first. `checkpoint` names the weights behind `chat` where its name does not.

    The request of a rejected reply is sent again, unless `replay_rejected`: then the reply is returned like any other.
    """

    def __init__(
        self, chat: ChatModel, path: Path | None, *, checkpoint: str = "", replay_rejected: bool = False
    ) -> None:
        self.name = chat.name
        self.replies: list[Reply] = []  # all replies in the file, including rejected ones
        self._chat, self._path, self._checkpoint, self._replay_rejected = chat, path, checkpoint, replay_rejected
        self._known: dict[str, Reply] = {}
        self._rejected: set[str] = set()
        self._pending: dict[str, asyncio.Task[Reply]] = {}
        self._unwritten: deque[CachedReply] = deque()
        self._lock = threading.Lock()  # guards everything that is read from the file
        self._position = 0  # the file has been read up to this byte
        if path and path.exists():
            with exclusive(path):
                self._read()

    async def complete(self, request: ChatRequest) -> Reply:
        """The cached reply, the reply to an equal request under way, or a new one. Raises as the chat model does."""
        key = self._key(request)
        if not self._usable(key):
            self._read_if_idle()
        if self._usable(key):
            return self._known[key]
        if key not in self._pending:
            self._pending[key] = asyncio.create_task(self._request(key, request))
        return await asyncio.shield(self._pending[key])  # cancelling this caller must not cancel it for others

    async def reject(self, requests: Iterable[ChatRequest], reason: str) -> None:
        """Record that the replies to these requests are unusable."""
        keys = [key for key in map(self._key, requests) if key not in self._rejected]
        if keys:
            await self._store([CachedReply(key=key, rejected=reason) for key in keys])

    def _key(self, request: ChatRequest) -> str:
        exclude = None if request.tools else {"tools"}  # replies of an earlier run are found again
        return content_hash([self.name, self._checkpoint, request.model_dump(mode="json", exclude=exclude)])

    def _usable(self, key: str) -> bool:
        return key in self._known and (self._replay_rejected or key not in self._rejected)

    async def _request(self, key: str, request: ChatRequest) -> Reply:
        started = time.monotonic()
        try:
            reply = await self._chat.complete(request)
            await self._store([CachedReply(key=key, reply=reply, seconds=round(time.monotonic() - started, 4))])
            return self._known[key]  # the other process's reply if that was first
        finally:
            del self._pending[key]

    async def _store(self, lines: Sequence[CachedReply]) -> None:
        """Return when `lines` are on disk. Lines that arrive while a thread waits for the disk are written together."""
        self._unwritten.extend(lines)
        await asyncio.to_thread(self._write)

    def _write(self) -> None:
        with self._lock:
            batch = [self._unwritten.popleft() for _ in range(len(self._unwritten))]
            if self._path is None:
                for line in batch:
                    self._take(line)
            elif batch:
                try:
                    with exclusive(self._path):
                        append_jsonl(self._path, batch)
                        self._read()
                except BaseException:
                    self._unwritten.extendleft(reversed(batch))  # else callers would believe their lines are on disk
                    raise

    def _read_if_idle(self) -> None:
        """Read on, unless a thread is writing: it reads by itself, and waiting for it would block the event loop."""
        if self._path and self._path.exists() and self._lock.acquire(blocking=False):
            try:
                self._read()
            finally:
                self._lock.release()

    def _read(self) -> None:
        """Take the complete lines added to the file since the last call. Raises DataError for an invalid one."""
        assert self._path is not None
        with self._path.open("rb") as file:
            file.seek(self._position)
            whole, end, _ = file.read().rpartition(b"\n")  # another process is writing the rest
        for line in whole.split(b"\n") if end else ():
            try:
                self._take(CachedReply.model_validate_json(line))
            except ValidationError as error:
                raise DataError(f"{self._path}: a line is not a cached reply ({first_problem(error)})") from error
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
    """Reject the replies to these requests if `chat` is a cache; no other chat model stores replies."""
    if isinstance(chat, CachedChat):
        await chat.reject(requests, reason)
