"""Reads records of a run that may still be working: takes no lock and ignores an incomplete last line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from internalize.errors import DataError

from .files import RecordT, first_problem, parsed


def record(path: Path, model: type[RecordT]) -> RecordT | None:
    """The record that a file consists of; None if there is no file. Raises DataError if it is invalid."""
    if not path.exists():
        return None
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error


def required(path: Path, model: type[RecordT]) -> RecordT:
    """The record that a file consists of. Raises DataError if it is missing or invalid."""
    found = record(path, model)
    if found is None:
        raise DataError(f"{path}: is missing")
    return found


def records(path: Path, model: type[RecordT]) -> Iterator[RecordT]:
    """The complete records of a file."""
    return (found for _, found in records_at(path, model))


def records_at(path: Path, model: type[RecordT]) -> Iterator[tuple[int, RecordT]]:
    """The complete records of a file with their byte offsets; none if there is no file."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # it is being written, or a kill has torn it
            yield offset, parsed(path, number, line, model)
            offset += len(line)
