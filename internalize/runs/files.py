"""Files of records: JSON Lines, read and appended by whole lines, and files that are replaced atomically.

A process may be killed at any byte: `append_jsonl` leaves whole lines and at most one torn last line, which `recover`
truncates, and `write_atomic` leaves the old file or the new one.
"""

from __future__ import annotations

import codecs
import json
import os
import shutil
import stat
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
_BLOCK = 1 << 16  # bytes read at once from the end of a file


def json_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file with their numbers, without blank lines and byte order mark; one is held at a time.

    Raises DataError if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
                if text.strip():
                    yield number, text.removesuffix(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def record_of(line: bytes, model: type[RecordT]) -> RecordT:
    """The record of one line, converted from version 1 if need be. Raises ValidationError."""
    return model.model_validate_json(upgraded(line) if MARK in line else line)


def stream_numbered(path: Path, model: type[RecordT]) -> Iterator[tuple[int, RecordT]]:
    """As `read_numbered`, one record at a time."""
    return ((number, parsed(path, number, line, model)) for number, line in json_lines(path))


def read_numbered(path: Path, model: type[RecordT]) -> list[tuple[int, RecordT]]:
    """All records of a file with their line numbers; the last line may lack its newline.

    Raises DataError naming file, line and field of the first invalid line, including a torn last one.
    """
    return list(stream_numbered(path, model))


def parsed(path: Path, number: int, line: bytes, model: type[RecordT]) -> RecordT:
    """The record of line `number` of a file. Raises DataError with its place."""
    try:
        return record_of(line, model)
    except ValidationError as error:
        raise DataError(f"{path}, line {number}: {first_problem(error)}") from error


def read_jsonl(path: Path, model: type[RecordT]) -> list[RecordT]:
    """The records of `read_numbered` without their line numbers."""
    return [record for _, record in read_numbered(path, model)]


def append_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    """Append whole lines and wait until they are on disk.

    Raises DataError, and writes nothing, if a record cannot be represented as JSON (NaN, infinity, a lone surrogate) or
    if the file ends in a torn line, which would merge with the first new one.
    """
    if data := encoded(path, records):
        append_line(path, data)


def append_line(path: Path, data: bytes) -> None:
    """Append bytes that end a line and wait until they are on disk. Raises DataError if the file ends in a torn line.

    A write that fails, as on a full disk, leaves the file as it was.
    """
    is_new = not path.exists()
    with path.open("ab+", buffering=0) as file:
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            raise DataError(f"{path}: the last line is torn; recover the file before adding to it")
        size, rest = file.tell(), memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError:
            file.truncate(size)
            raise
        os.fsync(file.fileno())
    if is_new:
        sync_folder(path.parent)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Lock a file of records against other processes that use this; it is created or recovered if need be."""
    with waiting_lock(path.with_name(f".{path.name}.lock")):
        if not path.exists():
            path.touch()
            sync_folder(path.parent)
        recover(path)
        yield


def write_jsonl(path: Path, records: Iterable[BaseModel]) -> None:
    """Replace a file by these records atomically; one is held at a time."""
    _replace(path, (encoded(path, [record]) for record in records))


def write_json(path: Path, record: BaseModel) -> None:
    """Replace a file by one indented record atomically. Raises DataError as `append_jsonl` does."""
    write_atomic(path, encoded(path, [record], indent=2))


def recover(path: Path) -> int:
    """Truncate a torn last line (one without newline); returns the bytes dropped, 0 if there is no file."""
    if not path.exists():
        return 0
    with path.open("rb+") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:  # backwards in blocks: files grow large, and only the last line can be torn
            start = max(0, end - _BLOCK)
            newline = os.pread(file.fileno(), end - start, start).rfind(b"\n")
            end = start + newline + 1
            if newline >= 0:
                break
        if end < size:
            file.truncate(end)
            os.fsync(file.fileno())
    return size - end


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers, also after a crash, see the old content or the new, never a part."""
    _replace(path, [content.encode() if isinstance(content, str) else content])


def _replace(path: Path, blocks: Iterable[bytes]) -> None:
    temporary = path.with_name(
        f".{path.name}.{uuid4().hex}.tmp"
    )  # not a pid: containers that share a disk have equal ones
    try:
        with temporary.open("xb") as file:
            file.writelines(blocks)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def require_folder(out: Path) -> None:
    """Raises UserError, before any work is done, if the folder of `out` is missing or not writable."""
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")
    if not os.access(out.parent, os.W_OK):
        raise UserError(f"{out}: the folder {out.parent} cannot be written to")


def require_own(folder: Path, leaving_out: str = "") -> None:
    """Raises UserError naming the first link, pipe or device in a folder: using one would reach things elsewhere.

    `leaving_out` is a folder in it that is not looked at.
    """
    for place, folders, files in os.walk(folder):
        if leaving_out in folders and Path(place) == folder:
            folders.remove(leaving_out)
        for path in (Path(place, name) for name in sorted([*folders, *files])):
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                kind = "a symbolic link" if stat.S_ISLNK(mode) else "no file and no folder"
                raise UserError(f"{path}: is {kind}; a run directory may hold only files and folders of its own")


def first_problem(error: ValidationError) -> str:
    """The first problem of a failed validation in a few words, starting with its field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return f"not a whole JSON record ({first['ctx']['error']})"
    if first["type"] == "extra_forbidden":
        return f"unknown field {field}"
    return f"{field}: {first['msg'][0].lower()}{first['msg'][1:]}" if field else first["msg"]


def encoded(path: Path, records: Iterable[BaseModel], indent: int | None = None) -> bytes:
    """What a file of these records holds. Raises DataError as `append_jsonl` does."""
    return b"".join(_text(path, record, indent).encode() + b"\n" for record in records)


def _text(path: Path, record: BaseModel, indent: int | None = None) -> str:
    # pydantic's own JSON writer turns NaN into null, which no reader would take back for a number.
    try:
        text = json.dumps(record.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, indent=indent)
        text.encode()
    except ValueError as error:
        raise DataError(f"{path}: a {type(record).__name__} cannot be written as JSON ({error})") from error
    return text


def copied(source: Path, target: Path) -> Path:
    """`target`, now a copy of `source` that is on disk."""
    shutil.copyfile(source, target)
    sync(target)
    return target


def sync(path: Path) -> None:
    """Wait until a file, or a folder and everything in it, is on disk."""
    for part in (path, *path.rglob("*")) if path.is_dir() else (path,):
        _sync(part)


def sync_folder(folder: Path) -> None:
    """Wait until the directory entries of a folder are on disk, without which a new or renamed file can be lost."""
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
