"""Reference solutions that are costly to make or differ each time they are made: kept in the cache folder.

One JSON Lines file for each game and setting. Left out: making them. What must not change: the first one kept for a
task stays its reference, so that a proof and a recipe that imitates see the same.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from internalize.errors import DataError, UserError
from internalize.records import Record, content_hash
from internalize.runs.cache import cache_folder
from internalize.runs.store import append_jsonl, read_jsonl, recover


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
        """The commands kept for `task`, or those that `make()` gives, kept from now on."""
        with self._lock:
            held = self._read() if self._held is None else self._held
            if task not in held:
                held[task] = tuple(make())
                self._add(Gold(task=task, commands=held[task]))
            self._held = held
            return held[task]

    def _read(self) -> dict[str, tuple[str, ...]]:
        """What the file holds; of a file that cannot be read nothing is kept."""
        found: dict[str, tuple[str, ...]] = {}
        if self.path.exists():
            try:
                recover(self.path)
                for gold in read_jsonl(self.path, Gold):
                    found.setdefault(gold.task, gold.commands)
            except DataError:
                self.path.unlink()
        return found

    def _add(self, gold: Gold) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append_jsonl(self.path, [gold])
        except PermissionError as error:
            raise UserError(f"cannot write {Path(self.path).parent}; set INTERNALIZE_CACHE to a folder") from error
