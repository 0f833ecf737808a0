"""Locks between processes: `flock`, through `filelock`. The system frees a lock when its holder dies, in any way."""

from pathlib import Path

from filelock import FileLock


def waiting_lock(path: Path) -> FileLock:
    """For `with`: waits for its turn, behind other threads too. Raises OSError where there are no such locks."""
    return FileLock(path, fallback_to_soft=False)


def lasting_lock(path: Path) -> FileLock:
    """To be acquired at once or not at all (filelock.Timeout), and released by any thread. Raises OSError as above."""
    return FileLock(path, blocking=False, thread_local=False, fallback_to_soft=False)
