"""selections.jsonl: what a language model chose at each step, why, and what it cost.

Left out: selectors that cost nothing. What must not change: a selection that a model really made is not asked for
again in a run that goes on, one that fell back is.
"""

from __future__ import annotations

from pathlib import Path

from internalize.records import Record
from internalize.runs.store import append_jsonl, read_jsonl, recover


class Selection(Record):
    """One selection. `id` is the hash of all that was asked; tokens are those of every try together."""

    id: str
    item_ids: tuple[str, ...]
    served_by: str
    rationale: str = ""
    failure: str = ""  # why the model did not serve; "" = it did
    tries: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


class SelectionLog:
    """Selections by id, in a file or (None) in memory alone."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        if path:
            recover(path)
        self.made: list[Selection] = read_jsonl(path, Selection) if path and path.exists() else []
        self._served = {made.id: made for made in self.made if not made.failure}

    def get(self, asked: str) -> Selection | None:
        """The selection that the model made for this very request."""
        return self._served.get(asked)

    def add(self, selection: Selection) -> None:
        """Keep a selection."""
        self.made.append(selection)
        if not selection.failure:
            self._served[selection.id] = selection
        if self._path:
            append_jsonl(self._path, [selection])
