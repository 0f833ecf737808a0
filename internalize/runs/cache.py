"""The folder for things that are built once and may be thrown away: converted models, inspected pages.

Left out: what lies in it. What must not change: what is built appears whole or not at all, and of several
processes that want the same thing one builds it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

_LOCK, _UNFINISHED = ".building.lock", "unfinished-"


def cache_folder() -> Path:
    """`INTERNALIZE_CACHE`, else `~/.cache/internalize`."""
    chosen = os.environ.get("INTERNALIZE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "internalize"


def built(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder `target` as `build(folder)` filled it, now or earlier.

    One process builds at a time; the others wait. So what an earlier one left unfinished is nobody's, and goes.
    Raises OSError if the cache cannot be written.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / _LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for leftover in target.parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not target.exists():  # whoever had the lock before may have built it
            _build(target, build)
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=target.parent, ignore_cleanup_errors=True) as scratch:
        build(Path(scratch, "built"))
        Path(scratch, "built").rename(target)
