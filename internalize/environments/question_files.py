"""Reads files of questions: JSON Lines, a JSON list or Parquet, with the field names of common data sets.

Without a named split, the hash of the question decides, so that a question never moves to another split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from internalize.errors import DataError, UserError
from internalize.records import Task, json_value
from internalize.runs.files import json_lines

SPLITS = ("train", "dev", "test")
QUESTION = ("question", "problem", "Question", "query")
ANSWER = ("answer", "Final answer", "final_answer", "Answer", "solution", "groundtruth")
FAMILY = ("family", "type", "subject", "category", "Topic", "topic", "problem_topic")


class Row(NamedTuple):
    """One row and where it stands."""

    where: str  # file and line
    cells: Mapping[str, Any]

    def get(self, names: Sequence[str]) -> str:
        """The text of the first of these fields that is not empty; "" if none is. Raises DataError for a list."""
        for name in names:
            value = self.cells.get(name)
            if isinstance(value, list | tuple | dict):
                raise DataError(f"{self.where}: {name} holds {str(value)[:60]}, which is not one text")
            if value is not None and (text := str(value).strip()):
                return text
        return ""

    def need(self, names: Sequence[str]) -> str:
        """As `get`. Raises DataError if there is none."""
        if not (value := self.get(names)):
            raise DataError(f"{self.where}: no field {names[0]!r} (nor {', '.join(names[1:])})")
        return value


def rows(path: Path) -> Iterator[Row]:
    """The rows of a .jsonl, .json or .parquet file. Raises DataError for a file or line that cannot be read."""
    unit: str
    numbered: Iterable[tuple[int, Any]]
    if path.suffix == ".parquet":
        unit, numbered = "row", enumerate(_parquet(path), 1)
    elif path.suffix == ".json":
        unit, numbered = "item", enumerate(_json_list(path), 1)
    else:
        unit, numbered = "line", json_lines(path)
    for number, cells in numbered:
        where = f"{path}, {unit} {number}"
        if unit == "line":
            cells = _parsed(where, cells)  # noqa: PLW2901
        if not isinstance(cells, dict):
            raise DataError(f"{where}: is no JSON object")
        yield Row(where, cells)


def _json_list(path: Path) -> list[Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the questions ({error})") from error
    items = _parsed(str(path), text)
    if not isinstance(items, list):
        raise DataError(f"{path}: is no JSON list of questions")
    return items


def _parsed(where: str, text: str | bytes) -> Any:
    try:
        return json_value(text)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("Parquet files need an extra: pip install 'internalize[web]'") from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot read the questions ({error})") from error
    return found


def split_of(question: str) -> str:
    """train, dev or test by the hash of the question (60 / 20 / 20)."""
    number = int(hashlib.sha256(" ".join(question.split()).casefold().encode()).hexdigest()[:8], 16) % 10
    return SPLITS[0 if number < 6 else 1 if number < 8 else 2]


def tasks_of(files: str | Mapping[str, str], make: Callable[[Row, str], Task]) -> dict[str, tuple[Task, ...]]:
    """Tasks by split. `files` is one file, whose rows may name a split, or a file for each split.

    `make(row, split)` builds one task. Raises DataError for a question that comes twice.
    """
    tasks: dict[str, list[Task]] = {}
    first_rows: dict[str, str] = {}
    for name, file in ({"": files} if isinstance(files, str) else files).items():
        for row in rows(Path(file).expanduser()):
            split = name or row.get(("split",)) or split_of(row.need(QUESTION))
            task = make(row, split)
            question = " ".join(task.question.split()).casefold()
            if (first := first_rows.setdefault(question, row.where)) != row.where:
                raise DataError(f"{row.where}: asks the question of {first} again")
            tasks.setdefault(split, []).append(task)
    return {split: tuple(listed) for split, listed in tasks.items()}
