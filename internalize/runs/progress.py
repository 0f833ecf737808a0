"""What every long command shows while it works, and what it says when it is stopped.

Left out: results (they go to standard output; progress goes to standard error).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from internalize.errors import Incomplete

Report = Callable[[str, int, int], None]  # stage, done, of


@contextmanager
def going_on_by(advice: str) -> Iterator[None]:
    """Whoever stops the work before its end is told how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise Incomplete(f"interrupted; to go on, {advice}") from error
    except Incomplete as error:
        raise Incomplete(f"{error}; to go on, {advice}") from error


@contextmanager
def progress() -> Iterator[Report]:
    """A bar a stage on a terminal, a line a stage elsewhere."""
    from rich.console import Console  # noqa: PLC0415 - not needed for --help
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description:38}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    bars = Progress(*columns, console=console, disable=not console.is_terminal)
    known: dict[str, Any] = {}

    def show(stage: str, done: int, total: int) -> None:
        if not known:  # not before: a command that is refused prints its one sentence and no empty line
            bars.start()
        if stage not in known:
            known[stage] = bars.add_task(stage, total=total)
        bars.update(known[stage], completed=done, total=total)
        if done == total and not console.is_terminal:
            console.print(f"{stage}: {done}/{total}")

    try:
        yield show
    finally:
        if known:
            bars.stop()
