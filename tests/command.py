"""Calling the command line in this process, for tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from internalize.runs.marks import read_marks
from internalize.runs.store import write_jsonl


class Ended(NamedTuple):
    """How a call ended."""

    code: int
    out: str
    err: str


Call = Callable[..., Ended]


def refused(ended: Ended, *parts: str) -> bool:
    """Exit code 2 and one sentence on standard error that holds every part."""
    lines = ended.err.splitlines()
    assert (ended.code, ended.out, len(lines)) == (2, "", 1), ended
    assert lines[0].startswith("internalize: ")
    assert all(part in lines[0] for part in parts), lines[0]
    return True


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def contents(run: Path) -> dict[str, object]:
    """Every record and weight of a run, without what time it took."""
    found: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file() and p.name != ".lock"):
        name = path.relative_to(run).as_posix()
        if path.suffix == ".jsonl" and name != "progress.jsonl":
            found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.suffix == ".json":
            found[name] = _timeless(json.loads(path.read_text()))
        elif path.suffix == ".safetensors":
            found[name] = path.read_bytes()
    return found


def without_digests(run: Path) -> None:
    """Mark the stages of a run as a version without digests did, so that its files may be changed by a test."""
    marks = [mark.model_copy(update={"files": {}, "chain": ""}) for mark in read_marks(run)]
    write_jsonl(run / "progress.jsonl", marks)


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value
