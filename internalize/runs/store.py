"""The run directory: whole records a line, atomic files, stage marks, one process at a time.

    run.json        what was asked for and with which versions, written once
    progress.jsonl  one line for each finished stage; a stage without its line is done again
    iter-K/         the records of iteration K

A process may be killed at any byte. `append_jsonl` leaves whole lines and at most one torn last line, which `recover`
cuts off; `write_atomic` leaves the old file or the new one. A stage's mark must be written after its records. Needs
POSIX (`flock`).
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import platform
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, JsonValue, ValidationError

from internalize.errors import Busy, ConfigError, DataError, UserError
from internalize.records import Record, Stage, StageMark

from . import names
from .memory import peak_device_memory, peak_memory
from .version_1 import mark_of

RecordT = TypeVar("RecordT", bound=BaseModel)
RUN, PROGRESS, LOCK = "run.json", "progress.jsonl", ".lock"
VERSION = 2  # of the records; what version 1 wrote otherwise is converted where it is read
PACKAGES = ("internalize", "torch", "transformers", "peft")
BLOCK = 1 << 16


def json_lines(path: Path) -> list[tuple[int, bytes]]:
    """The lines of a file with their numbers, without blank ones and a byte order mark. Raises DataError."""
    try:
        lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def read_numbered(path: Path, model: type[RecordT]) -> list[tuple[int, RecordT]]:
    """All records of a file and the numbers of their lines; a whole last record may lack its newline.

    Raises DataError naming file, line and field of the first bad line, a torn last one included.
    """
    records = []
    for number, line in json_lines(path):
        try:
            records.append((number, model.model_validate_json(line)))
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
        _sync_folder(path.parent)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Keep other processes that open it this way from a file of records, made if need be and without a torn line."""
    is_new = not path.exists()
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if is_new:
            _sync_folder(path.parent)
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


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


class Settings(Protocol):
    """What the store needs of a config (`internalize.config.Config` is one)."""

    @property
    def digest(self) -> str:
        """Content hash of everything that can change a result."""
        ...

    @property
    def seed(self) -> int:
        """Seed of everything that is drawn."""
        ...

    def dump(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        ...

    def changed_from(self, stored: dict[str, Any]) -> list[str]:
        """Dotted names of the fields in which this config differs from a stored dump."""
        ...


class RunInfo(Record):
    """run.json: what a run was started with. `version` is of its records' layout; files without it have 1."""

    version: int = 1
    config: dict[str, JsonValue]
    digest: str
    seed: int
    versions: dict[str, str]


def read_run(path: Path) -> RunInfo:
    """What the run in `path` was started with. Takes no lock, so a running one can be read too."""
    try:
        info = RunInfo.model_validate_json((path / RUN).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{path}: not a run directory (no {RUN})") from error
    except OSError as error:
        raise DataError(f"{path / RUN}: cannot be read ({error.strerror})") from error
    except ValidationError as error:
        raise DataError(f"{path / RUN}: {first_problem(error)}") from error
    if info.version > VERSION:
        raise UserError(f"{path}: its records have version {info.version}; this installation reads up to {VERSION}")
    return info


def read_marks(path: Path) -> list[StageMark]:
    """The finished stages of the run in `path`. Takes no lock; a line being written at this moment is left out."""
    file = path / PROGRESS
    if not file.exists():
        return []
    whole = file.read_bytes().rpartition(b"\n")[0]
    found = []
    for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
        try:
            found.append(mark_of(line))
        except ValueError as error:
            raise DataError(f"{file}, line {number}: not the mark of a stage") from error
    return [mark for mark in found if mark is not None]


class RunStore:
    """An open run directory, held by this process alone until `close`. Build it with `create` or `open`."""

    def __init__(self, path: Path, info: RunInfo, lock: int) -> None:
        self.path = path
        self.info = info
        self._lock = lock
        self._since = time.monotonic()
        self._done = {mark.stage for mark in read_marks(path)}

    @classmethod
    def create(cls, path: Path, config: Settings) -> RunStore:
        """Start a run in a new or empty directory. Raises UserError, and writes nothing, if it is in use."""
        _require_empty(path)
        _make_folder(path)
        lock = _take_lock(path)
        try:
            _require_empty(path)  # another process may have been first
            info = RunInfo(
                version=VERSION, config=config.dump(), digest=config.digest, seed=config.seed, versions=versions()
            )
            write_json(path / RUN, info)
            return cls(path, info, lock)
        except BaseException:
            os.close(lock)
            raise

    @classmethod
    def open(cls, path: Path, config: Settings | None, *, resume: bool = True) -> RunStore:
        """Continue the run in `path`, or start it there if the directory is new or empty.

        `config` None takes the stored one (`info.config`). Raises UserError if there is a run and
        `resume` is off, if the directory holds something else, or if another process has it;
        ConfigError naming the fields if it was started with another config.
        """
        if config is not None and (not resume or not _contents(path)):
            return cls.create(path, config)
        info = read_run(path)
        if config is not None and config.digest != info.digest:
            fields = ", ".join(config.changed_from(info.config)) or "fields this version does not know"
            raise ConfigError(f"{path}: the run was started with another config; changed: {fields}")
        lock = _take_lock(path)
        try:
            _clean_up(path)
            return cls(path, info, lock)
        except BaseException:
            os.close(lock)
            raise

    def iteration(self, k: int) -> Path:
        """The folder of iteration `k`, made if it is missing."""
        folder = self.path / names.iteration(k)
        if not folder.exists():
            folder.mkdir()
            _sync_folder(self.path)
        return folder

    def done(self, stage: Stage) -> bool:
        """Whether a stage was finished."""
        return stage in self._done

    def mark(self, stage: Stage) -> None:
        """Note that a stage is finished; its files must be on disk already."""
        if not self.done(stage):
            since, self._since = self._since, time.monotonic()
            used = {"memory": peak_memory(), "device_memory": peak_device_memory()}
            append_jsonl(self.path / PROGRESS, [StageMark(stage=stage, seconds=round(self._since - since, 3), **used)])
            self._done.add(stage)

    def close(self) -> None:
        """Let another process have the directory."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def versions() -> dict[str, str]:
    """Versions that can change a result; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


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


def _sync_folder(folder: Path) -> None:
    # A new or renamed file is safe only when its folder's entry is on disk too.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror})") from error
    _sync_folder(path.parent)


def _take_lock(path: Path) -> int:
    handle = -1
    try:
        handle = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if handle >= 0:
            os.close(handle)
        if isinstance(error, BlockingIOError):
            raise Busy(f"{path}: another process is working in this run directory") from error
        raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
    return handle


def _contents(path: Path) -> Sequence[str]:
    # The lock and half-written temporaries are no content: a kill before run.json leaves just them.
    try:
        names = [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise UserError(f"{path}: is a file or lies in one, so it cannot be a run directory") from error
    return [name for name in names if name != LOCK and not _is_temporary(name)]


def _is_temporary(name: str) -> bool:
    return name.startswith(".") and name.endswith(".tmp")


def _require_empty(path: Path) -> None:
    names = _contents(path)
    if RUN in names:
        raise UserError(f"{path}: already holds a run; continue it with --resume or choose another folder")
    if names:
        raise UserError(f"{path}: holds files that are no run ({min(names)}); choose another folder")


def _clean_up(path: Path) -> None:
    for folder in (path, *path.glob("iter-*")):
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        for records in folder.glob("*.jsonl"):
            recover(records)
