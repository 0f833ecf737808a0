"""Locks between processes: `flock`, through `filelock`. The kernel frees a lock when its process dies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def waiting_lock(path: Path) -> BaseFileLock:
    """For `with`: waits for other processes and threads. Raises OSError on file systems without such locks."""
    from filelock import FileLock  # noqa: PLC0415 - not needed for --help

    return FileLock(path, fallback_to_soft=False)


def lasting_lock(path: Path) -> BaseFileLock | None:
    """A lock that is taken at once and that any thread may release; None if it is taken. Raises OSError as above."""
    from filelock import FileLock, Timeout  # noqa: PLC0415

    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Whether another process holds this lock now; makes no file."""
    lock = lasting_lock(path) if path.exists() else None
    if lock is not None:
        lock.release()
    return lock is None and path.exists()
