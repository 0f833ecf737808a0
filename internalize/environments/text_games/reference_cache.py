"""Reference solutions that are costly to make or differ each time they are made: kept in the cache folder.

One JSON Lines file for each game and setting. The first solution kept for a task stays its reference, whichever process
made it, so that a proof and a recipe that imitates see the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from internalize.errors import DataError, UserError
from internalize.records import Record, content_hash
from internalize.runs.cache import cache_folder
from internalize.runs.store import append_jsonl, exclusive, read_jsonl, write_jsonl


class Gold(Record):
    """The commands that solve one task."""

    task: str
    commands: tuple[str, ...]


class GoldStore:
    """The references of one game in one setting, by the name of the task."""

    def __init__(self, game: str, setting: Sequence[str]) -> None:
        self.path = cache_folder() / "gold" / f"{game}-{content_hash(list(setting))}.jsonl"
        self._lock = threading.Lock()
        self._held: dict[str, tuple[str, ...]] | None = None

    def get(self, task: str, make: Callable[[], Sequence[str]]) -> tuple[str, ...]:
        """The commands kept for `task`, or those that `make()` gives, kept from now on. Raises UserError."""
        with self._lock:
            self._held = self._kept() if self._held is None else self._held
            if task not in self._held:
                self._held = self._kept(Gold(task=task, commands=tuple(make())))
            return self._held[task]

    def _kept(self, new: Gold | None = None) -> dict[str, tuple[str, ...]]:
        """What the file holds, `new` too unless another process was first. A file that cannot be read is begun anew."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(self.path):
                try:
                    found = read_jsonl(self.path, Gold)
                except DataError:
                    found = []
                    write_jsonl(self.path, found)
                if new and all(gold.task != new.task for gold in found):
                    append_jsonl(self.path, [new])
                    found.append(new)
        except PermissionError as error:
            raise UserError(f"cannot write {self.path.parent}; set INTERNALIZE_CACHE to a folder") from error
        return {gold.task: gold.commands for gold in reversed(found)}  # of two for one task the first counts
