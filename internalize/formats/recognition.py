"""Recognizes the format of a log by its content: the first values of the file, or the kind of archive."""

from __future__ import annotations

import codecs
import io
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ijson
from ijson.common import ObjectBuilder

from internalize.errors import UserError
from internalize.records import Trajectory

from . import (
    anthropic,
    atif,
    calls,
    chat,
    claude_code,
    inspect_logs,
    official,
    otel,
    responses,
    sessions,
    swe_agent,
    tau2,
    trajectories,
    verifiers,
)
from .reading import Located, Session, events, json_values, opened

_HEAD = 1 << 20  # bytes by which a format is recognized
Head = Sequence[dict[str, Any]]  # the first objects of a file; the last may be cut


class LogFormat(NamedTuple):
    """A format: one line about it, a test of a file's head, its values, and the episodes of one value."""

    about: str
    recognizes: Callable[[Head], bool]
    read: Callable[[Any, Session], Iterable[Trajectory]]
    values: Callable[[Path], Iterator[Located]] = json_values


# In the order of trial: stricter formats first.
FORMATS: dict[str, LogFormat] = {
    "trajectories": LogFormat("trajectories of this program", trajectories.recognizes, trajectories.read),
    "official-rollout": LogFormat(
        "rollout.jsonl of the paper's released code", official.recognizes_rollout, official.read_rollout
    ),
    "official-eval": LogFormat(
        "iterN.jsonl of the paper's released code", official.recognizes_eval, official.read_eval
    ),
    "atif": LogFormat("ATIF, the trajectories of Harbor", atif.recognizes, atif.read, atif.values),
    "claude-code": LogFormat(
        "sessions of Claude Code", claude_code.recognizes, claude_code.read, sessions.session_values
    ),
    "codex": LogFormat("sessions of Codex", responses.recognizes_codex, responses.read_codex, sessions.session_values),
    "inspect": LogFormat("logs of inspect_ai", inspect_logs.recognizes, inspect_logs.read, inspect_logs.values),
    "otel": LogFormat("OpenTelemetry spans, GenAI conventions", otel.recognizes, otel.read, otel.values),
    "tau2": LogFormat("results of tau2-bench", tau2.recognizes, tau2.read, tau2.values),
    "tau": LogFormat("results of tau-bench", tau2.recognizes_tau1, tau2.read_tau1, tau2.values_tau1),
    "verifiers": LogFormat("traces of verifiers and prime-rl", verifiers.recognizes, verifiers.read),
    "verifiers-results": LogFormat("results of verifiers 0", verifiers.recognizes_results, verifiers.read_results),
    "mini-swe-agent": LogFormat("trajectories of mini-swe-agent", swe_agent.recognizes_mini, swe_agent.read_mini),
    "swe-agent": LogFormat("trajectories of SWE-agent", swe_agent.recognizes, swe_agent.read),
    "calls": LogFormat("requests to a model with their answers", calls.recognizes, calls.read, calls.values),
    "responses": LogFormat("OpenAI Responses, a conversation a line", responses.recognizes, responses.read),
    "anthropic": LogFormat("Anthropic Messages, a conversation a line", anthropic.recognizes, chat.read),
    "chat": LogFormat("OpenAI messages, a conversation a line", chat.recognizes, chat.read),
    "messages": LogFormat("messages and nothing around them", chat.recognizes_one, chat.read, chat.conversations),
}


def named(name: str) -> LogFormat:
    """The format with this name. Raises UserError."""
    if name not in FORMATS:
        raise UserError(f"--format {name}: no such format (there are {', '.join(FORMATS)})")
    return FORMATS[name]


def recognized(path: Path) -> str:
    """The name of a file's format. Raises UserError if it is unknown, DataError if the file cannot be read."""
    first = head(path)
    for name, found in FORMATS.items():
        if first and found.recognizes(first):
            return name
    raise UserError(f"{path}: is in no log format that is known (`internalize logs formats` lists them)")


def head(path: Path) -> list[dict[str, Any]]:
    """The first objects of a file of JSON: lines, items of a list, or one document, as far as they can be read."""
    with opened(path) as file:
        block = file.read(_HEAD).removeprefix(codecs.BOM_UTF8)
        if block.startswith(b"PK") and zipfile.is_zipfile(file):
            return [{"members of the archive": zipfile.ZipFile(file).namelist()}]
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
