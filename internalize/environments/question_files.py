"""Reads files of questions: JSON Lines, a JSON list, CSV or Parquet, with the field names of common data sets.

Without a named split, the hash of the question chooses one, so that a question never moves to another split.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from internalize.errors import DataError, UserError, first_line
from internalize.records import Task, json_value
from internalize.runs.files import json_lines

_LONGEST_CELL = 10_000_000  # characters
PROPOSED = "proposed"  # marks a question that a program wrote and nobody has reviewed
SPLITS = ("train", "dev", "test")
QUESTION = ("question", "problem", "Question", "query")
ANSWER = ("answer", "Final answer", "final_answer", "Answer", "solution", "groundtruth")
FAMILY = ("family", "type", "subject", "category", "Topic", "topic", "problem_topic")


class Columns(NamedTuple):
    """The fields with question and answer, if they do not have the common names above."""

    question: str = ""
    answer: str = ""

    def named(self, where: str, cells: Mapping[str, Any]) -> Mapping[str, Any]:
        """The cells with their question and answer under these names. Raises DataError for a field that is missing."""
        wanted = {name: column for name, column in self._asdict().items() if column}
        if missing := [column for column in wanted.values() if column not in cells]:
            raise DataError(f"{where}: no field {missing[0]!r} (it has {', '.join(map(repr, cells))})")
        return {**cells, **{name: cells[column] for name, column in wanted.items()}}


class Row(NamedTuple):
    """One row and its place in the file."""

    where: str  # file and line
    cells: Mapping[str, Any]

    def get(self, names: Sequence[str]) -> str:
        """The first non-empty text among these fields; "" if there is none. Raises DataError for a list."""
        for name in names:
            value = self.cells.get(name)
            if isinstance(value, list | tuple | dict):
                raise DataError(f"{self.where}: {name} holds {str(value)[:60]}, which is not one text")
            if value is not None and (text := str(value).strip()):
                return text
        return ""

    def need(self, names: Sequence[str]) -> str:
        """As `get`, but raises DataError if there is none."""
        if not (value := self.get(names)):
            raise DataError(f"{self.where}: no field {names[0]!r} (nor {', '.join(names[1:])})")
        return value


def rows(path: Path, columns: Columns = Columns()) -> Iterator[Row]:  # noqa: B008 - frozen
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file.

    Raises DataError for a file, line or column that cannot be read.
    """
    unit: str
    numbered: Iterable[tuple[int, Any]]
    ending = path.suffix.lower()
    if ending == ".parquet":
        unit, numbered = "row", enumerate(_parquet(path), 1)
    elif ending == ".json":
        unit, numbered = "item", enumerate(_json_list(path), 1)
    elif ending in {".csv", ".tsv"}:
        unit, numbered = "record", _csv(path, ending)
    else:
        unit, numbered = "line", json_lines(path)
    for number, cells in numbered:
        where = f"{path}, {unit} {number}"
        if isinstance(cells, bytes):
            cells = _parsed(where, cells)  # noqa: PLW2901
        if not isinstance(cells, dict):
            raise DataError(f"{where}: is no JSON object")
        yield Row(where, columns.named(where, cells))


def _csv(path: Path, ending: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records under a line of column names, numbered from 1 without that line. Raises DataError."""
    csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            comma = "\t" if ending == ".tsv" else max(",;\t", key=first.count)
            for number, cells in enumerate(csv.DictReader(file, delimiter=comma, strict=True), start=1):
                if None in cells or None in cells.values():
                    raise DataError(f"{path}, record {number}: has more or fewer cells than there are columns")
                yield number, cells
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot read the questions ({error})") from error


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
        return json_value(text, encodable=True)
    except ValueError as error:
        raise DataError(f"{where}: not JSON ({error})") from error


def _parquet(path: Path) -> list[dict[str, Any]]:
    try:
        from pyarrow import ArrowException, parquet  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise UserError("Parquet files need an extra: pip install 'internalize[web]'") from error
    try:
        found: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (OSError, ArrowException, ValueError) as error:  # ValueError: text that is no UTF-8
        raise DataError(f"{path}: cannot read the questions ({first_line(error)})") from error
    return found


def split_of(question: str) -> str:
    """train, dev or test by the hash of the question (60 / 20 / 20)."""
    number = int(hashlib.sha256(" ".join(question.split()).casefold().encode()).hexdigest()[:8], 16) % 10
    return SPLITS[0 if number < 6 else 1 if number < 8 else 2]


def tasks_of(
    files: str | Mapping[str, str],
    make: Callable[[Row, str], Task],
    columns: Columns = Columns(),  # noqa: B008 - frozen
    draw: Callable[[str], str] = split_of,
) -> dict[str, tuple[Task, ...]]:
    """Tasks by split. `files` is one file, whose rows may name a split, or a file for each split.

    `make(row, split)` builds one task; `draw` gives the split of a question whose row names none. Raises DataError for
    a question that occurs twice, or that this program proposed and nobody has reviewed.
    """
    tasks: dict[str, list[Task]] = {}
    first_rows: dict[str, str] = {}
    for name, file in ({"": files} if isinstance(files, str) else files).items():
        for row in rows(Path(file).expanduser(), columns):
            if row.cells.get(PROPOSED):
                raise DataError(f"{row.where}: is a proposal; look at it, then run `internalize questions accept`")
            split = name or row.get(("split",)) or draw(row.need(QUESTION))
            task = make(row, split)
            question = " ".join(task.question.split()).casefold()
            if (first := first_rows.setdefault(question, row.where)) != row.where:
                near = first.removeprefix(row.where.rpartition(" ")[0].rpartition(" ")[0] + " ")
                raise DataError(f"{row.where}: asks the question of {near} again")
            tasks.setdefault(split, []).append(task)
    return {split: tuple(listed) for split, listed in tasks.items()}
