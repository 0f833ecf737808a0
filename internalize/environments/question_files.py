"""Questions from files of others: JSON Lines, a JSON list or Parquet, whatever their fields are called.

Left out: what a row means (the environment says which names a field may have). What must not change: a row that
cannot be used is named by file and line; without a split the hash of the question decides, so that it never moves.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from internalize.errors import DataError, TaskError, UserError
from internalize.records import Task
from internalize.runs.files import json_lines

SPLITS = ("train", "dev", "test")
QUESTION = ("question", "problem", "Question", "query")
ANSWER = ("answer", "Final answer", "final_answer", "Answer", "solution", "groundtruth")
FAMILY = ("family", "type", "subject", "category", "Topic")


class Row(NamedTuple):
    """One row and where it stands."""

    where: str  # file and line
    cells: Mapping[str, Any]

    def get(self, names: Sequence[str]) -> str:
        """The first cell of these names that holds something, as text; "" if none does. Raises DataError for a list."""
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
    if path.suffix == ".parquet":
        yield from (Row(f"{path}, row {n}", cells) for n, cells in enumerate(_parquet(path), 1))
        return
    if path.suffix == ".json":
        yield from (Row(f"{path}, item {n}", _object(f"{path}, item {n}", cells)) for n, cells in _items(path))
    else:
        for number, line in json_lines(path):
            where = f"{path}, line {number}"
            yield Row(where, _object(where, _parsed(where, line)))


def _items(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot read the questions ({error})") from error
    found = _parsed(str(path), text)
    if not isinstance(found, list):
        raise DataError(f"{path}: is no JSON list of questions")
    yield from enumerate(found, 1)


def _parsed(where: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _object(where: str, cells: Any) -> dict[str, Any]:
    if not isinstance(cells, dict):
        raise DataError(f"{where}: is no JSON object")
    return cells


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


def home(question: str) -> str:
    """train, dev or test by the hash of the question (60 / 20 / 20)."""
    number = int(hashlib.sha256(" ".join(question.split()).casefold().encode()).hexdigest()[:8], 16) % 10
    return SPLITS[0 if number < 6 else 1 if number < 8 else 2]


def tasks_of(files: str | Mapping[str, str], make: Callable[[Row, str], Task]) -> dict[str, tuple[Task, ...]]:
    """Tasks by split. `files` is one file, whose rows may name a split, or a file for each split.

    `make(row, split)` builds one task. Raises DataError for a question asked twice.
    """
    listed = {"": files} if isinstance(files, str) else files
    found: dict[str, list[Task]] = {}
    asked: dict[str, str] = {}
    for name, file in listed.items():
        for row in rows(Path(file).expanduser()):
            split = name or row.get(("split",)) or home(row.need(QUESTION))
            task = make(row, split)
            question = " ".join(task.question.split()).casefold()
            if (first := asked.setdefault(question, row.where)) != row.where:
                raise DataError(f"{row.where}: asks the question of {first} again")
            found.setdefault(split, []).append(task)
    return {split: tuple(tasks) for split, tasks in found.items()}


def of_split(env: str, made: Mapping[str, tuple[Task, ...]], split: str) -> tuple[Task, ...]:
    """The tasks of one split. Raises TaskError for one that is not there."""
    if split not in made:
        raise TaskError(f"{env}: no split {split!r} (there are {', '.join(made) or 'none'})")
    return made[split]
