"""Progress of long commands on standard error, and the advice they give when they are interrupted."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from internalize.errors import Incomplete

from .visible import visible

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
Report = Callable[[str, int, int], None]  # stage, number done, total


@contextmanager
def going_on_by(advice: str) -> Iterator[None]:
    """Add to the message of an interruption how to go on. A full disk is one."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise Incomplete(f"{os.strerror(error.errno or 0)}; once there is room, {advice}") from error
    except KeyboardInterrupt as error:
        raise Incomplete(f"interrupted; to go on, {advice}") from error
    except Incomplete as error:
        raise Incomplete(f"{error}; to go on, {advice}") from error


@contextmanager
def progress() -> Iterator[Report]:
    """One progress bar for each stage on a terminal, one line for each elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - not needed for --help
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description:38}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    tasks: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if not tasks:  # not earlier: a command that is refused must print its one sentence and no empty line
            bars.start()
        if stage not in tasks:
            tasks[stage] = bars.add_task(visible(stage), total=total)
        bars.update(tasks[stage], completed=done, total=total)
        if done == total and not console.is_terminal:
            console.print(f"{visible(stage)}: {done}/{total}", markup=False)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()
