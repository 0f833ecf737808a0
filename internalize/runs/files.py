"""Files of records: JSON Lines, read and added to by whole lines, and files replaced all or nothing.

A process may be killed at any byte: `append_jsonl` leaves whole lines and at most one torn last line, which `recover`
cuts off, and `write_atomic` leaves the old file or the new one.
"""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from pydantic import BaseModel, ValidationError

from internalize.errors import DataError, UserError

from .locks import waiting_lock
from .version_1 import MARK, upgraded

RecordT = TypeVar("RecordT", bound=BaseModel)
BLOCK = 1 << 16  # bytes read at once from the end of a file


def json_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a file with their numbers, without blank ones and a byte order mark. Raises DataError."""
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def record_of(line: bytes, model: type[RecordT]) -> RecordT:
    """The record of one line, of any version. Raises ValidationError."""
    return model.model_validate_json(upgraded(line) if MARK in line else line)


def read_numbered(path: Path, model: type[RecordT]) -> list[tuple[int, RecordT]]:
    """All records of a file and the numbers of their lines; a whole last record may lack its newline.

    Raises DataError naming file, line and field of the first bad line, a torn last one included.
    """
    records = []
    for number, line in json_lines(path):
        try:
            records.append((number, record_of(line, model)))
        except ValidationError as error:
            raise DataError(f"{path}, line {number}: {first_problem(error)}") from error
    return records


def read_jsonl(path: Path, model: type[RecordT]) -> list[RecordT]:
    """The records of `read_numbered` alone."""
    return [record for _, record in read_numbered(path, model)]


def append_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    """Add whole lines and wait until they are on disk.

    Raises DataError, and writes nothing, if a record cannot be held as JSON (NaN, infinity, a lone
    surrogate) or if the file ends in a torn line, which would swallow the first new one.
    """
    data = _encode(path, records)
    if not data:
        return
    is_new = not path.exists()
    with path.open("ab+") as file:
        if file.tell() and not _ends_whole(file.fileno(), file.tell()):
            raise DataError(f"{path}: the last line is torn; recover the file before adding to it")
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes that open it this way from a file of records, made if need be and without a torn line."""
    with waiting_lock(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            path.touch()
            sync_folder(path.parent)
        recover(path)
        yield


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    """Replace a file by these records, all or nothing."""
    write_atomic(path, _encode(path, records))


def write_json(path: Path, record: BaseModel) -> None:
    """Replace a file by one record, indented, all or nothing. Raises DataError as `append_jsonl` does."""
    write_atomic(path, _text(path, record, indent=2) + "\n")


def recover(path: Path) -> int:
    """Cut off a torn last line (one without newline); returns the bytes dropped. A missing file is fine."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        keep = _whole_length(file.fileno(), size)
        if keep < size:
            file.truncate(keep)
            os.fsync(file.fileno())
    return size - keep


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part."""
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.tmp")  # pids are equal in containers that share a disk
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def require_folder(out: Path) -> None:
    """Raises UserError, before any work, if `out` cannot be written for want of its folder."""
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: the folder {out.parent} cannot be written to")


def first_problem(error: ValidationError) -> str:
    """The first problem of a failed validation in a few words, its field first."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"not a whole JSON record ({first['ctx']['error']})"
    if first["type"] == "extra_forbidden":
        return f"unknown field {field}"
    return f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}" if field else first["msg"]


def _encode(path: Path, records: Iterable[BaseModel]) -> bytes:
    return b"".join(_text(path, record).encode() + b"\n" for record in records)


def _text(path: Path, record: BaseModel, indent: int | None = None) -> str:
    # pydantic's own JSON writer turns NaN into null, which no reader would take back for a number.
    try:
        text = json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, indent=indent)
        text.encode()
    except ValueError as error:
        raise DataError(f"{path}: a {type(record).__name__} cannot be written as JSON ({error})") from error
    return text


def _ends_whole(file: int, size: int) -> bool:
    return os.pread(file, 1, size - 1) == b"\n"


def _whole_length(file: int, size: int) -> int:
    # Backwards in blocks: the files grow large and the torn line is the last.
    end = size
    while end > 0:
        start = max(0, end - BLOCK)
        newline = os.pread(file, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on disk."""
    # A new or renamed file is safe only when its folder's entry is on disk too.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
