"""Runs a command, and ends it with all its processes when the starting process ends, however that happens.

    python guard.py PID COMMAND...      PID: the process that starts this

It is a separate program, run by its path: it must start at once and clean up after a starter that was killed.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

PATIENCE = 10.0  # seconds in which a command must end by itself
_LOOKS = 0.5  # seconds


def main(starter: int, command: list[str]) -> int:
    """The exit code of the command; 128 and the signal's number for one that was killed."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603 - the caller's

    def stop(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=_end, args=(process.pid,), daemon=True).start()

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=_end_with, args=(starter, process.pid), daemon=True).start()
    code = process.wait()
    _signal(process.pid, signal.SIGKILL)  # child processes that it has not ended
    return code if code >= 0 else 128 - code


def _end_with(starter: int, group: int) -> None:
    while os.getppid() == starter:
        time.sleep(_LOOKS)
    _end(group)


def _end(group: int) -> None:
    _signal(group, signal.SIGTERM)
    time.sleep(PATIENCE)
    _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
