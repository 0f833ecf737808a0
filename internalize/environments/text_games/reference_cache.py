"""Keeps reference solutions of text games in the cache folder: some are slow to find, some differ each time.

The first solution kept for a task stays its reference, whichever process found it, so that validation and a recipe that
imitates it agree. There is one JSON Lines file for each game and setting.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from internalize.errors import DataError, UserError
from internalize.records import Record, content_hash
from internalize.runs.cache import cache_folder
from internalize.runs.store import append_jsonl, exclusive, read_jsonl, write_jsonl


class Reference(Record):
    """The commands that solve one task."""

    task: str
    commands: tuple[str, ...]


class ReferenceCache:
    """The references of one game in one setting, by the name of the task."""

    def __init__(self, game: str, setting: Sequence[str]) -> None:
        self.path = cache_folder() / "gold" / f"{game}-{content_hash(list(setting))}.jsonl"
        self._lock = threading.Lock()
        self._references: dict[str, tuple[str, ...]] | None = None

    def get(self, task: str, find: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The commands kept for `task`, or those that `find()` gives, kept from now on. Raises UserError."""
        with self._lock:
            if self._references is None:
                self._references = self._read()
            if task not in self._references:
                self._references = self._read(Reference(task=task, commands=tuple(find())))
            return self._references[task]

    def _read(self, new: Reference | None = None) -> dict[str, tuple[str, ...]]:
        """The references in the file, to which `new` is added unless another process was first.

        A file that cannot be read starts again empty.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.path):
                try:
                    found = read_jsonl(self.path, Reference)
                except DataError:
                    found = []
                    write_jsonl(self.path, found)
                if new and all(reference.task != new.task for reference in found):
                    append_jsonl(self.path, [new])
                    found.append(new)
        except PermissionError as error:
            raise UserError(f"cannot write {self.path.parent}; set INTERNALIZE_CACHE to a folder") from error
        return {one.task: one.commands for one in reversed(found)}  # reversed: of two for one task the first counts
