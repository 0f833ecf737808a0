"""Recognizes the format of a log by its content: the first values of the file, or the archive that it is."""

from __future__ import annotations

import codecs
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ijson
from ijson.common import ObjectBuilder

from internalize.errors import UserError
from internalize.records import Trajectory

from . import chat, official, trajectories
from .reading import Located, Session, events, json_values, opened

_HEAD = 1 << 20  # bytes that a format is recognized by
Head = Sequence[dict[str, Any]]  # the first objects of a file; the last may be cut


class LogFormat(NamedTuple):
    """One line about a format, whether a file is in it, the episodes of one value, and the values of a file."""

    about: str
    recognizes: Callable[[Head], bool]
    read: Callable[[Any, Session], Iterable[Trajectory]]
    values: Callable[[Path], Iterator[Located]] = json_values


# In the order in which they are tried: the more a format asks of a file, the earlier.
FORMATS: dict[str, LogFormat] = {
    "trajectories": LogFormat("trajectories of this program", trajectories.recognizes, trajectories.read),
    "official-rollout": LogFormat(
        "rollout.jsonl of the paper's released code", official.recognizes_rollout, official.read_rollout
    ),
    "official-eval": LogFormat(
        "iterN.jsonl of the paper's released code", official.recognizes_eval, official.read_eval
    ),
    "chat": LogFormat("OpenAI messages, a conversation a line", chat.recognizes, chat.read),
}


def named(name: str) -> LogFormat:
    """The format with this name. Raises UserError."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format (there are {', '.join(FORMATS)})")
    return FORMATS[name]


def recognized(path: Path) -> str:
    """The name of the format of a file. Raises UserError if it is none of them, DataError if it cannot be read."""
    first = head(path)
    for name, found in FORMATS.items():
        if first and found.recognizes(first):
            return name
    raise UserError(f"{path}: is in no log format that is known; name it with --format ({', '.join(FORMATS)})")


def head(path: Path) -> list[dict[str, Any]]:
    """The first objects of a file of JSON: lines, items of a list, or one document, as far as they can be read."""
    with opened(path) as file:
        block = file.read(_HEAD).removeprefix(codecs.BOM_UTF8)
    found: list[Any] = []
    builder, depth = ObjectBuilder(), 0
    try:
        for event, value in events(io.BytesIO(block), several=True):
            if not depth:
                builder = ObjectBuilder()
            builder.event(event, value)
            depth += event.startswith("start_") - event.startswith("end_")
            if not depth:
                found.append(builder.value)
    except (ijson.JSONError, UnicodeDecodeError):
        pass  # the end of the block, or of what is JSON
    if depth:
        found.append(builder.value)
    flat = [item for value in found for item in (value if isinstance(value, list) else [value])]
    return [item for item in flat if isinstance(item, dict)]
