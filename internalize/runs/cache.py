"""The cache folder, for things that can be built again: converted models, inspected packages."""

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
    """The folder `target`, filled by `build(folder)` now or earlier; it appears complete or not at all.

    One process builds at a time and the others wait, so unfinished folders belong to no process and are removed.
    Raises OSError if the cache cannot be written.
    """
    if target.exists():
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
