"""The run directory: its config, stage marks and lock; one process at a time.

    run.json        what was asked for and with which versions, written once
    progress.jsonl  one line for each finished stage; a stage without its line is done again
    iter-K/         the records of iteration K

A stage's mark must be written after its records. Needs POSIX (`flock`). The functions of files.py are found here too.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import JsonValue, ValidationError

from internalize.errors import Busy, ConfigError, DataError, UserError
from internalize.records import Record, SelfCheck, Stage, StageMark

from . import names
from .files import (
    append_jsonl,
    exclusive,
    first_problem,
    read_jsonl,
    recover,
    require_folder,
    sync_folder,
    write_atomic,
    write_json,
    write_jsonl,
)
from .locks import lasting_lock
from .memory import peak_device_memory, peak_memory
from .version_1 import mark_of

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "LOCK",
    "PROGRESS",
    "RUN",
    "RunInfo",
    "RunStore",
    "Settings",
    "append_jsonl",
    "exclusive",
    "first_problem",
    "read_jsonl",
    "read_marks",
    "read_run",
    "recover",
    "require_folder",
    "versions",
    "write_atomic",
    "write_json",
    "write_jsonl",
]
RUN, PROGRESS, LOCK = "run.json", "progress.jsonl", ".lock"
VERSION = 2  # of the records; what version 1 wrote otherwise is converted where it is read
PACKAGES = ("internalize", "torch", "transformers", "peft")


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
    self_check: SelfCheck | None = None  # of the policy at the start; None: it was not checked


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

    def __init__(self, path: Path, info: RunInfo, lock: BaseFileLock) -> None:
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
            lock.release()
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
        if config is not None and config.digest != info.digest and (changed := config.changed_from(info.config)):
            raise ConfigError(f"{path}: the run was started with another config; changed: {', '.join(changed)}")
        lock = _take_lock(path)
        try:
            _clean_up(path)
            return cls(path, info, lock)
        except BaseException:
            lock.release()
            raise

    def iteration(self, k: int) -> Path:
        """The folder of iteration `k`, made if it is missing."""
        folder = self.path / names.iteration(k)
        if not folder.exists():
            folder.mkdir()
            sync_folder(self.path)
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

    def keep_check(self, found: SelfCheck | None) -> None:
        """Write the policy's self-check into run.json; the first one stays."""
        if found is not None and self.info.self_check is None:
            self.info = self.info.model_copy(update={"self_check": found})
            write_json(self.path / RUN, self.info)

    def close(self) -> None:
        """Let another process have the directory."""
        self._lock.release()

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


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror})") from error
    sync_folder(path.parent)


def _take_lock(path: Path) -> BaseFileLock:
    try:
        lock = lasting_lock(path / LOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
    if lock is None:
        raise Busy(f"{path}: another process is working in this run directory")
    return lock


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
