"""The folder for things that are built once and may be thrown away: converted models, inspected pages."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from .locks import waiting_lock

_LOCK, _UNFINISHED = ".building.lock", "unfinished-"


def cache_folder() -> Path:
    """`INTERNALIZE_CACHE`, else `~/.cache/internalize`."""
    chosen = os.environ.get("INTERNALIZE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "internalize"


def built(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder `target` as `build(folder)` filled it, now or earlier: whole, or not there at all.

    One process builds at a time and the others wait, so what lies there unfinished belongs to nobody and is removed.
    Raises OSError if the cache cannot be written.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with waiting_lock(target.parent / _LOCK):
        for leftover in target.parent.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        if not target.exists():  # whoever had the lock before may have built it
            _build(target, build)
    return target


def _build(target: Path, build: Callable[[Path], None]) -> None:
    with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=target.parent, ignore_cleanup_errors=True) as scratch:
        build(Path(scratch, "built"))
        Path(scratch, "built").rename(target)
