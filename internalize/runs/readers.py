"""Records of a run that may still be working: no lock is taken, and a torn last line is left out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from internalize.errors import DataError

from .files import first_problem, record_of

RecordT = TypeVar("RecordT", bound=BaseModel)


def record(path: Path, model: type[RecordT]) -> RecordT | None:
    """The one record of a file; None if there is no file. Raises DataError for a broken one."""
    if not path.exists():
        return None
    try:
        return model.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error


def records(path: Path, model: type[RecordT]) -> Iterator[RecordT]:
    """The whole records of a file."""
    return (found for _, found in records_at(path, model))


def records_at(path: Path, model: type[RecordT]) -> Iterator[tuple[int, RecordT]]:
    """Whole records with their byte offsets; none if there is no file."""
    if not path.exists():
        return
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return  # being written at this moment, or torn by a kill
            try:
                yield offset, record_of(line, model)
            except ValidationError as error:
                raise DataError(f"{path}, line {number}: {first_problem(error)}") from error
            offset += len(line)
