"""The tools of the example agents: search and read pages about the installed Python's standard library."""

from __future__ import annotations

from threading import Lock

import internalize as it


class Library:
    """Pages of one split of the environment `docs`; an agent of yours has tools of its own here."""

    def __init__(self, split: str) -> None:
        self._episode = it.make_environment("docs").episode(it.Task.new("docs", split, "none"))

    def search(self, words: str) -> str:
        return self._episode.step(it.ToolCall.of("search", words=words)) or ""

    def visit(self, page: str) -> str:
        return self._episode.step(it.ToolCall.of("visit", page=page)) or ""


_MADE: dict[str, Library] = {}
_LOCK = Lock()  # agents run in threads, and the pages take seconds to collect


def library(split: str) -> Library:
    with _LOCK:
        if split not in _MADE:
            _MADE[split] = Library(split)
        return _MADE[split]
