"""What commands print, and how they end: the only place of the command line that writes or takes signals.

Items, logs, models and servers are others' text; a terminal obeys the escape sequences in it, so it is printed
without. SIGTERM and SIGHUP stop a command as Ctrl-C does: by an exception that a resume can follow.
"""

from __future__ import annotations

import logging
import signal
import sys
import threading
from types import FrameType

import click

from internalize.runs.visible import visible


def echo(text: str = "", *, err: bool = False) -> None:
    """Print a line of a command's own words and of others' text."""
    click.echo(visible(text), err=err)


def echo_data(text: str) -> None:
    """Print what a command was asked to write: byte for byte into a file or pipe, visibly on a terminal."""
    click.echo(visible(text) if sys.stdout.isatty() else text, nl=False)


class _OneLine(logging.Formatter):
    """Messages of libraries quote what servers sent, and their tracebacks have thousands of lines."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(visible(record.getMessage()).split())[:1000]


def log_to_terminal(level: int = logging.WARNING) -> None:
    """Print what is logged as one line each, without tracebacks and escape sequences.

    Below WARNING only this package speaks: libraries log every request.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    handler.setLevel(level)
    logging.lastResort = handler  # used where nothing else was set up
    logging.getLogger("internalize").setLevel(min(level, logging.WARNING))


def is_verbose() -> bool:
    """Whether details are asked for: what is logged for information, and where in the program an error arose."""
    return logging.getLogger("internalize").isEnabledFor(logging.INFO)


def stop_on_signals() -> None:
    """Take SIGTERM and SIGHUP as an interrupt. One that is ignored, as under nohup, stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # An event loop has its own handler of SIGINT, which lets its tasks end; in the background SIGINT may be ignored.
    signal.signal(number, signal.SIG_DFL)  # a second one ends the process at once
    if callable(signal.getsignal(signal.SIGINT)):
        signal.raise_signal(signal.SIGINT)
    else:
        signal.default_int_handler(number, frame)
