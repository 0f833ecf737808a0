"""The run directory: its config, stage marks and lock; one process at a time.

    run.json        the config and the versions of packages, written once
    progress.jsonl  one line for each finished stage; a stage without its line runs again
    iter-K/         the records of iteration K

A stage's mark must be written after its records, and a file that a mark names is changed through `replace` or `drop`
only. Needs POSIX (`flock`). Re-exports the functions of files.py.
"""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pydantic import BaseModel, JsonValue

from internalize.config.schema import Config
from internalize.errors import Busy, ConfigError, UserError
from internalize.records import Record, SelfCheck, Stage, StageMark

from . import names
from .files import (
    append_jsonl,
    append_line,
    encoded,
    exclusive,
    first_problem,
    read_jsonl,
    recover,
    require_folder,
    require_own,
    stream_numbered,
    sync_folder,
    write_atomic,
    write_json,
    write_jsonl,
)
from .locks import is_locked, lasting_lock
from .marks import PROGRESS, digest_of, digests, line_of, read_lines, read_marks, require_sound
from .memory import peak_device_memory, peak_memory
from .readers import record

if TYPE_CHECKING:
    from filelock import BaseFileLock

__all__ = [
    "LOCK",
    "PROGRESS",
    "RUN",
    "RunInfo",
    "RunStore",
    "append_jsonl",
    "exclusive",
    "first_problem",
    "read_jsonl",
    "read_marks",
    "read_run",
    "recover",
    "require_folder",
    "stream_numbered",
    "versions",
    "write_atomic",
    "write_json",
    "write_jsonl",
]
TRACKING = "tracking"  # a folder in the run directory: what dashboards' packages write
RUN, LOCK = "run.json", ".lock"
VERSION = 2  # of the records; those of version 1 are converted as they are read
ROOM = 100_000_000  # bytes: the records and adapters of some iterations
PACKAGES = ("internalize", "torch", "transformers", "peft")


class RunInfo(Record):
    """run.json: what a run was started with. `version` is that of its records; files without it have version 1."""

    version: int = 1
    config: dict[str, JsonValue]
    digest: str
    seed: int
    versions: dict[str, str]
    self_check: SelfCheck | None = None  # of the first policy; None = it was not checked


def read_run(path: Path) -> RunInfo:
    """What the run in `path` was started with. Takes no lock, so a running one can be read too.

    Raises UserError if there is no run, if a later version wrote it, or if it holds links.
    """
    require_own(path, TRACKING)
    info = record(path / RUN, RunInfo)
    if info is None:
        raise UserError(f"{path}: not a run directory (no {RUN})")
    if info.version > VERSION:
        raise UserError(f"{path}: its records have version {info.version}; this installation reads up to {VERSION}")
    return info


class RunStore:
    """An open run directory, locked by this process until `close`. Build it with `create` or `open`."""

    def __init__(self, path: Path, info: RunInfo, lock: BaseFileLock, config: Config | None = None) -> None:
        self.path = path
        self.info = info
        self._compute = config.compute.model_dump(mode="json") if config else {}  # of now, not of the run's start
        self._lock = lock
        self._last_mark = time.monotonic()
        lines, self._chain = read_lines(path)
        self._done = {mark.stage for mark in lines if not mark.begun}
        self._named = {name: digest for mark in lines for name, digest in mark.files.items()}

    @classmethod
    def create(cls, path: Path, config: Config) -> RunStore:
        """Start a run in a new or empty directory. Raises UserError, and writes nothing, if it is in use."""
        _require_empty(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be made ({error.strerror})") from error
        sync_folder(path.parent)
        lock = _take_lock(path)
        try:
            _require_empty(path)  # another process may have been first
            info = RunInfo(
                version=VERSION, config=config.dump(), digest=config.digest, seed=config.seed, versions=versions()
            )
            write_json(path / RUN, info)
            return cls(path, info, lock, config)
        except BaseException:
            lock.release()
            raise

    @classmethod
    def open(cls, path: Path, config: Config | None, *, resume: bool = True) -> RunStore:
        """Continue the run in `path`, or start it there if the directory is new or empty.

        `config` None takes the stored one (`info.config`). Raises UserError if there is a run and `resume` is off, if
        the directory contains other files, or if another process uses it; ConfigError, naming the fields, if the run
        was started with another config; DataError, naming the file, if one is not as its stage wrote it.
        """
        check(path, config, resume=resume)
        if config is not None and (not resume or not _contents(path)):
            return cls.create(path, config)
        info = read_run(path)
        lock = _take_lock(path)
        try:
            _clean_up(path)
            return cls(path, info, lock, config)
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

    def mark(self, stage: Stage, *paths: Path) -> None:
        """Record that a stage is finished; `paths`, its files and folders, must be on disk already.

        Those that do not exist are left out: a stage may have had nothing to write there.
        """
        if not self.done(stage):
            now = time.monotonic()
            seconds, self._last_mark = round(now - self._last_mark, 3), now
            wrote = [path for path in paths if path.exists()]
            if RUN not in self._named:
                wrote.append(self.path / RUN)
            mark = StageMark(
                stage=stage,
                seconds=seconds,
                memory=peak_memory(),
                device_memory=peak_device_memory(),
                host=platform.node(),
                compute=self._compute,
                files=digests(self.path, wrote),
            )
            self._note(mark)
            self._done.add(stage)

    def replace(self, stage: Stage, path: Path, records: Iterable[BaseModel]) -> None:
        """Put these records, one a line, in place of a file that several stages write, for the stage that does so now.

        What it will be is noted first if a mark names it, so that a kill in between does not look like damage.
        """
        self._replace(stage, path, encoded(path, records))

    def replace_json(self, stage: Stage, path: Path, record: BaseModel) -> None:
        """The same for a file of one record."""
        self._replace(stage, path, encoded(path, [record], indent=2))

    def _replace(self, stage: Stage, path: Path, content: bytes) -> None:
        if path.exists() and path.read_bytes() == content:
            return
        name, digest = path.relative_to(self.path).as_posix(), digest_of(content)
        if name in self._named:
            self._note(StageMark(stage=stage, files={name: digest}, begun=True))
        write_atomic(path, content)

    def drop(self, stage: Stage, *paths: Path) -> None:
        """Remove files and folders that are needed no more."""
        gone = [path for path in paths if path.exists()]
        if known := digests(self.path, gone).keys() & self._named.keys():
            self._note(StageMark(stage=stage, files=dict.fromkeys(sorted(known), ""), begun=True))
        for path in gone:
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _note(self, mark: StageMark) -> None:
        line, chain = line_of(mark, self._chain)
        append_line(self.path / PROGRESS, line)
        self._chain = chain
        self._named |= mark.files

    def keep_check(self, check: SelfCheck | None) -> None:
        """Write the policy's self-check into run.json, unless there is one already or a mark names the file."""
        if check is not None and self.info.self_check is None and RUN not in self._named:
            self.info = self.info.model_copy(update={"self_check": check})
            write_json(self.path / RUN, self.info)

    def close(self) -> None:
        """Release the directory to other processes."""
        self._lock.release()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def check(path: Path, config: Config | None, *, resume: bool = True) -> None:
    """Raise what `RunStore.open` would raise, without writing anything: before a model is loaded."""
    if config is not None and (not resume or not _contents(path)):
        _require_empty(path)
        _require_writable(path)
        return
    if config is None:
        read_run(path)
    else:
        require_same(path, config)
    if (path / names.iteration(0) / names.COSTS).exists():
        raise UserError(f"{path}: was unpacked from records without episodes and weights; nothing can go on from it")
    _require_writable(path)
    if is_locked(path / LOCK):
        raise Busy(f"{path}: another process is working in this run directory")
    require_sound(path)


def require_same(path: Path, config: Config) -> None:
    """Raises ConfigError naming the fields if the run in `path` was started with another config."""
    info = read_run(path)
    if config.digest != info.digest and (changed := config.changed_from(info.config)):
        raise ConfigError(f"{path}: the run was started with another config; changed: {', '.join(changed)}")


def versions() -> dict[str, str]:
    """Versions that can change a result; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _take_lock(path: Path) -> BaseFileLock:
    try:
        lock = lasting_lock(path / LOCK)
    except OSError as error:
        raise UserError(f"{path}: cannot be locked ({error.strerror})") from error
    if lock is None:
        raise Busy(f"{path}: another process is working in this run directory")
    return lock


def _contents(path: Path) -> Sequence[str]:
    # The lock and unfinished temporary files do not count: a kill before run.json leaves only these.
    try:
        found = [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise UserError(f"{path}: is a file or lies in one, so it cannot be a run directory") from error
    return [name for name in found if name != LOCK and not (name.startswith(".") and name.endswith(".tmp"))]


def _require_empty(path: Path) -> None:
    contents = _contents(path)
    if RUN in contents:
        raise UserError(f"{path}: already contains a run; continue it with --resume or choose another folder")
    if contents:
        raise UserError(f"{path}: contains files that are no run ({min(contents)}); choose another folder")


def _require_writable(path: Path) -> None:
    """Raises UserError where no file can be made, or where there is no room for even one checkpoint of an adapter."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{path}: cannot be made ({there} is not a folder that can be written to)")
    if (free := shutil.disk_usage(there).free) < ROOM:
        raise UserError(f"{path}: {free / 1e6:.0f} MB are free on its disk, and a run needs at least {ROOM / 1e6:.0f}")


def _clean_up(path: Path) -> None:
    for left in (found for prefix in (names.REHEARSAL, names.LAUNCHED) for found in path.glob(f"{prefix}*")):
        shutil.rmtree(left, ignore_errors=True)
    for folder in (path, *path.glob("iter-*")):
        for unfinished in folder.glob(".*.tmp"):
            unfinished.unlink(missing_ok=True)
        for records in folder.glob("*.jsonl"):
            recover(records)
