"""Progress of long commands on standard error, and the advice they give when they are interrupted."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from internalize.errors import Incomplete

from .visible import visible

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# Modules whose notes are for the user: abilities and differences of a server, lost workers.
_TOLD = ("internalize.inference.server_policy", "internalize.rollout.ray")
Report = Callable[[str, int, int], None]  # stage, number done, total
QUIET: ContextVar[bool] = ContextVar("QUIET", default=False)  # no progress is shown


@contextmanager
def going_on_by(advice: str) -> Iterator[None]:
    """Add advice on resuming to the message of an interruption or a full disk."""
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
    except Exception as error:
        if is_interruption(error):
            raise Incomplete(f"interrupted; to go on, {advice}") from error
        raise


def is_interruption(error: BaseException) -> bool:
    """Whether an error began as an interrupt, even if a library has turned it into another error."""
    before = error.__cause__ or error.__context__
    return isinstance(error, KeyboardInterrupt) or (before is not None and is_interruption(before))


class Bars:
    """A progress bar for the current stage on a terminal, removed when the stage ends; else one line for each stage."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - not needed for --help
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        rate = TextColumn("{task.fields[rate]}")
        name = TextColumn("{task.description:38}", markup=False)
        columns = (name, BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn())
        self.console = Console(stderr=True, quiet=QUIET.get())
        self.bars = Progress(*columns, console=self.console, disable=not self.console.is_terminal)
        self._tasks: dict[str, Any] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` of a stage are done."""
        if not self._tasks:  # not earlier: a command that is refused must print its one sentence and no empty line
            self.bars.start()
        if stage not in self._tasks:
            self._tasks[stage] = self.bars.add_task(visible(stage), total=total, rate="")
        number = self._tasks[stage]
        seconds = self.bars.tasks[number].elapsed or 0.0
        rate = f"{done / seconds:.1f}/s" if seconds > 1 else ""
        self.bars.update(number, completed=done, total=total, rate=rate, visible=done < total)
        if done == total and not self.console.is_terminal:
            self.console.print(f"{visible(stage)}: {done} of {total} done", highlight=False, markup=False)

    def line(self, text: str) -> None:
        """Print a sentence above the bars."""
        self.console.print(visible(text), highlight=False, markup=False, soft_wrap=True)

    def stop(self) -> None:
        """Restore the terminal."""
        if self._tasks:
            self.bars.stop()


@contextmanager
def progress() -> Iterator[Bars]:
    """Progress of a command on standard error, with notes about servers and workers."""
    bars = Bars()
    notes = _Notes(bars)
    for name in _TOLD:
        logging.getLogger(name).addHandler(notes)
        logging.getLogger(name).setLevel(logging.INFO)
    try:
        yield bars
    finally:
        for name in _TOLD:
            logging.getLogger(name).removeHandler(notes)
        bars.stop()


class _Notes(logging.Handler):
    """Prints notes above the progress bars, a line each."""

    def __init__(self, bars: Bars) -> None:
        super().__init__(logging.INFO)
        self._bars = bars

    def emit(self, record: logging.LogRecord) -> None:
        """Print one note."""
        self._bars.line(record.getMessage())
