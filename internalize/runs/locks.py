"""Locks between processes: `flock`, through `filelock`. The system frees a lock when its holder dies, in any way."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from filelock import BaseFileLock


def waiting_lock(path: Path) -> BaseFileLock:
    """For `with`: waits for its turn, behind other threads too. Raises OSError where there are no such locks."""
    from filelock import FileLock  # noqa: PLC0415 - not needed for --help

    return FileLock(path, fallback_to_soft=False)


def lasting_lock(path: Path) -> BaseFileLock | None:
    """A lock that any thread may release; None if another process or thread has it. Raises OSError as above."""
    from filelock import FileLock, Timeout  # noqa: PLC0415

    lock = FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        return None
    return lock
