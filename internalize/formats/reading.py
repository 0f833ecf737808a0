"""Reads log files as a stream: one value at a time, each with its place, and the trajectories made from it.

Only one value (a line of JSON Lines, or an item of a JSON list) is in memory, so a file may have any size. A file of
objects over several lines is read whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import ijson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from internalize.errors import DataError
from internalize.records import Trajectory
from internalize.runs.files import first_problem, json_lines

from .notes import Notes

Protocol = Literal["bracket", "json", "native"]
Located = tuple[str, Any]  # where a value stands in its file ("line 3"), and the value or the DataError in its place
_BLANK = re.compile(r"\s*")
_LONGEST = 1 << 20  # bytes of a first line that tell lines from documents
_DEEPEST = 500  # levels of a JSON document
ModelT = TypeVar("ModelT", bound=BaseModel)


class Reading(BaseModel):
    """Options for reading logs. `protocol` is the tool format of the model that will be trained on them.

    "native": the model's own format; tools are kept as such, and training writes turns with the model's template.
    """

    model_config = ConfigDict(frozen=True)

    env: str = "chat"
    split: str = "train"
    protocol: Protocol = "json"
    thinking: bool = False
    score: float | None = Field(None, ge=0, le=1)  # for episodes whose log has none
    score_range: tuple[float, float] = (0.0, 1.0)  # the log's scores for failure and success

    @model_validator(mode="after")
    def _has_width(self) -> Reading:
        if self.score_range[0] >= self.score_range[1]:
            raise ValueError("score_range: the first number must be below the second")
        return self

    def scaled(self, name: str, *scores: float | None) -> float | None:
        """The first known score on the scale [0, 1]. Raises DataError for one outside `score_range`."""
        found = next((score for score in scores if score is not None), None)
        if found is None:
            return self.score
        low, high = self.score_range
        if not low <= found <= high:
            problem = f"{name}: {found:g} is outside [{low:g}, {high:g}]"
            raise DataError(f"{problem}; say which scores mean failure and success (--score-range)")
        return (found - low) / (high - low)


@dataclass
class Session:
    """One reading of any number of files: its options, its counts, and the episodes seen so far.

    With `skip`, unreadable values are left out and counted.
    """

    reading: Reading = field(default_factory=Reading)
    notes: Notes = field(default_factory=Notes)
    skip: bool = False
    attempts: Counter[str] = field(default_factory=Counter)
    seen: set[str] = field(default_factory=set)  # ids of turns, for formats that copy turns from log to log
    places: dict[str, str] = field(default_factory=dict)  # of every episode, by its id

    def leave_out(self, error: DataError, place: str) -> None:
        """Count an unreadable value. Raises DataError, with the place, unless such values are skipped."""
        if not self.skip:
            raise DataError(f"{place}{', ' if str(error).startswith('line ') else ': '}{error}") from error
        self.notes.dropped[f"unreadable ({error})"] += 1

    def require_new(self, found: Iterable[Trajectory], near: str) -> None:
        """Raises DataError for an id of an earlier episode; its place is shortened if it begins with `near`."""
        for trajectory in found:
            if first := self.places.get(trajectory.id):
                raise DataError(f"id: {trajectory.id!r} is also the id in {first.removeprefix(near)}")

    def validated(self, model: type[ModelT], value: object) -> ModelT:
        """The value in this schema, its repairs counted. Raises DataError naming the field."""
        if not isinstance(value, dict):
            raise DataError("is no JSON object")
        try:
            return model.model_validate(value, context=self.notes)
        except ValidationError as error:
            raise DataError(first_problem(error)) from error


def episodes(
    path: Path,
    values: Callable[[Path], Iterator[Located]],
    read: Callable[[Any, Session], Iterable[Trajectory]],
    session: Session,
) -> Iterator[Trajectory]:
    """The trajectories that `read` makes of the values of a file.

    Raises DataError naming file, line and field, also for an episode id that occurs twice.
    """
    for where, value in _to_the_end(values(path), session):
        try:
            if isinstance(value, DataError):
                raise value
            found = list(read(value, session))
            session.require_new(found, f"{path}, ")
        except DataError as error:
            session.leave_out(error, _place(path, where))
            continue
        except ValidationError as error:  # a value that the format allows and a trajectory does not
            session.leave_out(DataError(first_problem(error)), _place(path, where))
            continue
        for trajectory in found:
            session.places[trajectory.id] = _place(path, where)
            session.attempts[trajectory.task_id] += 1
            yield trajectory


def _to_the_end(values: Iterator[Located], session: Session) -> Iterator[Located]:
    """The values up to the first unreadable place. Raises DataError unless that is skipped."""
    try:
        yield from values
    except DataError as error:
        if not session.skip:
            raise
        session.notes.dropped[f"rest of a file ({error})"] += 1


def json_values(path: Path) -> Iterator[Located]:
    """The lines of JSON Lines, the items of a JSON list, or the file's only object.

    Raises DataError naming file and line.
    """
    with opened(path) as file:
        first = b""
        while not first.strip() and (block := file.readline(_LONGEST)):
            first = block.removeprefix(codecs.BOM_UTF8)
        ends = first.endswith(b"\n")
        if first.lstrip()[:1] == b"[" and not (ends and _is_json(first) and any(line.strip() for line in file)):
            yield from items(path, "item")
        elif ends and _is_start(first):
            file.seek(0)
            yield from _documents(file.read().removeprefix(codecs.BOM_UTF8))
        else:
            yield from ((f"line {number}", _parsed(line)) for number, line in json_lines(path))


def items(path: Path, prefix: str) -> Iterator[Located]:
    """The items of a list inside one JSON document, with its numbers. Raises DataError."""
    with opened(path) as file:
        if file.read(3) != codecs.BOM_UTF8:
            file.seek(0)
        try:
            for number, value in enumerate(ijson.items(ijson.parse(events(file)), prefix), start=1):
                yield f"item {number}", value
        except (ijson.JSONError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: not a whole JSON document ({str(error).splitlines()[0]})") from error


def events(file: BinaryIO, *, several: bool = False) -> Iterator[tuple[str, Any]]:
    """The events of a JSON parser, one by one. Raises ijson.JSONError, also for too deep nesting."""
    depth = 0
    for event, value in ijson.basic_parse(file, use_float=True, multiple_values=several):
        depth += event.startswith("start_") - event.startswith("end_")
        if depth > _DEEPEST:  # every level costs the parser the names of all levels above
            raise ijson.JSONError(f"nested deeper than {_DEEPEST} levels")
        yield event, value


def opened(path: Path) -> BinaryIO:
    """The open file. Raises DataError if it cannot be opened, or is in UTF-16."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if file.read(2) in {codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE}:
        file.close()
        raise DataError(f"{path}: is written in UTF-16; convert it to UTF-8")
    file.seek(0)
    return file


def _documents(data: bytes) -> Iterator[Located]:
    """The objects over several lines in a text, one by one."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield "", DataError(f"not a JSON record ({error})")
        return
    place, line = 0, 1
    while found := _BLANK.match(text, place):
        start, place = found.end(), found.end()
        if start == len(text):
            return
        line += text.count("\n", found.start(), start)
        try:
            value, place = json.JSONDecoder().raw_decode(text, start)
        except json.JSONDecodeError as error:
            yield f"line {error.lineno}", DataError(f"not a whole JSON record ({error.msg} at column {error.colno})")
            return
        except RecursionError as error:
            yield f"line {line}", DataError(f"not a JSON record ({error})")
            return
        yield f"line {line}", value
        line += text.count("\n", start, place)


def _parsed(text: bytes) -> Any:
    """The JSON value, or the DataError that explains why there is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        return DataError(f"not a whole JSON record ({error.msg} at {line}column {error.colno})")
    except (ValueError, RecursionError) as error:
        return DataError(f"not a JSON record ({error})")


def _place(path: Path, where: str) -> str:
    return f"{path}, {where}" if where else str(path)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_start(line: bytes) -> bool:
    """Whether a line begins an object that spans further lines."""
    opening = line.lstrip()[:1] == b"{" and line.rstrip()[-1:] in {b"{", b"[", b","}
    return opening and not _is_json(line)
