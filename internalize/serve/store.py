"""The files of an endpoint: finished calls and scores, written to disk before anybody learns of them.

Lines that arrive during a write are written together, with one wait for the disk.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from internalize.errors import Busy, UserError
from internalize.runs.files import recover
from internalize.runs.lines import Lines
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
        self._files = {RecordedCall: Lines(folder / CALLS), EpisodeScore: Lines(folder / SCORES)}

    async def keep(self, record: RecordedCall | EpisodeScore) -> None:
        """Return when the record is on disk. Raises DataError or OSError if it cannot be written."""
        await asyncio.shield(self._files[type(record)].put(record))

    def close(self) -> None:
        """Release the folder to other processes."""
        lock: BaseFileLock = self._lock
        lock.release()
