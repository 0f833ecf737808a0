"""The cache folder, for things that can be built again: converted models, inspected packages."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .locks import waiting_lock

_LOCK, _UNFINISHED = ".building.lock", "unfinished-"


def cache_folder() -> Path:
    """`INTERNALIZE_CACHE`, else `~/.cache/internalize`."""
    chosen = os.environ.get("INTERNALIZE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "internalize"


class Entry(NamedTuple):
    """One thing in the cache: its path, its size in bytes, and the seconds since it was last used or built."""

    path: Path
    size: int
    idle: float


def entries() -> list[Entry]:
    """What the cache holds, largest first."""
    folder = cache_folder()
    found = [path for path in folder.glob("*") if path.name != _LOCK] if folder.is_dir() else []
    now = time.time()
    made = [Entry(path, _size(path), now - path.stat().st_mtime) for path in found]
    return sorted(made, key=lambda entry: -entry.size)


def remove(entry: Entry) -> None:
    """Delete an entry while nothing is being built. A process that has read it does not need it any more."""
    with waiting_lock(cache_folder() / _LOCK):
        if entry.path.is_dir() and not entry.path.is_symlink():
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            entry.path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def built(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder `target`, filled by `build(folder)` now or earlier; it appears complete or not at all.

    One process builds at a time and the others wait, so unfinished folders belong to no process and are removed.
    Raises OSError if the cache cannot be written.
    """
    if target.exists():
        os.utime(target)  # it was used: `entries` shows when
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(target.parent / _LOCK):
        for unfinished in target.parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        if not target.exists():  # the process that had the lock before may have built it
            folder = tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=target.parent, ignore_cleanup_errors=True)
            with folder as scratch:
                build(Path(scratch, "built"))
                Path(scratch, "built").rename(target)
    return target
