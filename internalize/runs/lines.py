"""Appends records to one file from an event loop, without holding the loop up while the disk is waited for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from pydantic import BaseModel

from .files import append_jsonl


class Lines:
    """The end of one file. Records that arrive during a write are written together, in one wait for the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[tuple[BaseModel, asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    def put(self, record: BaseModel) -> asyncio.Future[None]:
        """Begin to append; the future is done when the record is on disk, in the order of the calls.

        It raises DataError or OSError if the record cannot be written. It must not be cancelled: await it through
        `asyncio.shield`, so that a caller who is cancelled does not take the line with it.
        """
        written: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, written))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write())
        return written

    async def _write(self) -> None:
        """Write until nothing waits. A signal that ends the loop cancels this task too, while callers wait for it."""
        lines: list[tuple[BaseModel, asyncio.Future[None]]] = []
        try:
            while self._waiting:
                lines, self._waiting = self._waiting, []
                records = [record for record, _ in lines]
                # A future and no task: ending the loop cancels all tasks, and this write would be cut off unseen.
                writing = asyncio.get_running_loop().run_in_executor(None, append_jsonl, self._path, records)
                while not writing.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([writing])
                error = writing.exception()
                for _, written in lines:
                    written.set_exception(error) if error else written.set_result(None)
        finally:  # something else ended this task: nobody may wait for ever
            for _, written in (*lines, *self._waiting):
                written.cancel()
