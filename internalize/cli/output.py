"""The output of commands and their end: the only module of the command line that prints or takes signals.

Items, logs, models and servers are untrusted text. A terminal executes escape sequences, so text is printed without
them. SIGTERM and SIGHUP stop a command as Ctrl-C does: by an exception, after which a resume is possible.
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
    """Print a line that may contain untrusted text."""
    click.echo(visible(text), err=err)


def echo_data(text: str) -> None:
    """Print the requested data: byte for byte into a file or pipe, without escape sequences on a terminal."""
    click.echo(visible(text) if sys.stdout.isatty() else text, nl=False)


class _OneLine(logging.Formatter):
    """Formats each message as one line, because libraries quote servers and add long tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        return " ".join(visible(record.getMessage()).split())[:1000]


def log_to_terminal(level: int = logging.WARNING) -> None:
    """Print each log message as one line, without tracebacks and escape sequences.

    Below WARNING only this package speaks: libraries log every request.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    handler.setLevel(level)
    logging.lastResort = handler  # the default if nothing else was set up
    logging.getLogger("internalize").setLevel(min(level, logging.WARNING))


def is_verbose() -> bool:
    """Whether -v is given: print notes, and where in the program an error occurred."""
    return logging.getLogger("internalize").isEnabledFor(logging.INFO)


def stop_on_signals() -> None:
    """Treat SIGTERM and SIGHUP as Ctrl-C. A signal that is ignored, as under nohup, stays ignored."""
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
