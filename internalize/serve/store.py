"""The files of an endpoint: finished calls and scores, on disk before anybody is told of them.

Lines that wait at the same time are written together, with one wait for the disk.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from internalize.errors import Busy, UserError
from internalize.records import Record
from internalize.runs.files import append_jsonl, recover
from internalize.runs.locks import lasting_lock

from .records import CALLS, SCORES, EpisodeScore, RecordedCall

if TYPE_CHECKING:
    from filelock import BaseFileLock


class ServeStore:
    """An open folder of records, locked by this process until `close`. Raises UserError if it cannot be used."""

    def __init__(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = lasting_lock(folder / ".lock")
        except OSError as error:
            raise UserError(f"{folder}: cannot be used ({error.strerror})") from error
        if lock is None:
            raise Busy(f"{folder}: another process is recording there")
        self.folder, self._lock = folder, lock
        for name in (CALLS, SCORES):
            recover(folder / name)
        self._files = {RecordedCall: _Lines(folder / CALLS), EpisodeScore: _Lines(folder / SCORES)}

    async def keep(self, record: RecordedCall | EpisodeScore) -> None:
        """Return when the record is on disk. Raises DataError or OSError if it cannot be written."""
        await self._files[type(record)].append(record)

    def close(self) -> None:
        """Release the folder to other processes."""
        lock: BaseFileLock = self._lock
        lock.release()


class _Lines:
    """Appends to one file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[Record, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def append(self, record: Record) -> None:
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        await asyncio.shield(written)  # a caller who is cancelled must not take the line with it

    async def _write(self) -> None:
        while self._waiting:
            lines, self._waiting = self._waiting, []
            try:
                await asyncio.to_thread(append_jsonl, self._path, [record for record, _ in lines])
            except Exception as error:  # noqa: BLE001 - each caller is told
                for _, written in lines:
                    written.set_exception(error)
            else:
                for _, written in lines:
                    written.set_result(None)
