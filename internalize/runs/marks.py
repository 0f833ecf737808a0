"""progress.jsonl: which stages of a run are finished, and the digests that show whether their files are as written.

Each line depends on all before it (`chain`), so a line that was changed, dropped, doubled or moved is found, as is any
file that a stage wrote. This finds damage, not forgery: whoever can write the directory can write the marks anew.
Lines of earlier versions have no digests and are believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from internalize.errors import DataError
from internalize.records import Stage, StageMark

from .version_1 import mark_of

PROGRESS = "progress.jsonl"
WEIGHTS = frozenset({".safetensors", ".pt", ".bin"})  # large, and no report reads them
_CHAIN = re.compile(rb', "chain": "([0-9a-f]{16})"\}$')
_LISTED = re.compile(r"iter-\d+/[^/]+|run\.json|metrics\.jsonl")  # what belongs in the folders of a run


def digest_of(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def digests(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """The digest of each file, and of each file below each folder, by its name in `root`."""
    found: dict[str, str] = {}
    for path in paths:
        for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
            found[file.relative_to(root).as_posix()] = _digest(file)
    return found


def _digest(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error


def line_of(mark: StageMark, before: str) -> tuple[bytes, str]:
    """The line of a mark, and its chain; `before` is the chain of the line before."""
    text = json.dumps(mark.model_dump(mode="json", exclude={"chain"}), ensure_ascii=False).encode()
    chain = _chained(before, text.removesuffix(b"}"))
    return text.removesuffix(b"}") + f', "chain": "{chain}"}}\n'.encode(), chain


def _chained(before: str, text: bytes) -> str:
    return hashlib.sha256(before.encode() + b"\n" + text).hexdigest()[:16]


def read_lines(path: Path) -> tuple[list[StageMark], str]:
    """Every whole line of the run in `path`, and the chain of the last. Raises DataError naming a bad or odd line."""
    file = path / PROGRESS
    if not file.exists():
        return [], ""
    found: list[StageMark] = []
    chain, is_chained = "", False
    for number, line in enumerate(file.read_bytes().split(b"\n")[:-1], start=1):
        try:
            mark = mark_of(line)
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{file}, line {number}: not the mark of a stage") from error
        written = _CHAIN.search(line)
        chain = _chained(chain, line[: written.start()] if written else line)
        if written.group(1).decode() != chain if written else is_chained:
            raise DataError(f"{file}, line {number}: was changed, or a line before it was changed, dropped or doubled")
        is_chained = bool(written)
        found += [mark] if mark else []
    return found, chain


def read_marks(path: Path) -> list[StageMark]:
    """The finished stages of the run in `path`. Takes no lock and ignores an incomplete last line."""
    return [mark for mark in read_lines(path)[0] if not mark.begun]


@dataclass(frozen=True)
class Verified:
    """Which files of a run are as the marks say."""

    checked: tuple[str, ...]
    faults: tuple[str, ...]  # a sentence each, beginning with the file
    unmarked: tuple[str, ...]  # files that no mark names: of stages that are not finished, or marked without digests
    old: tuple[Stage, ...]  # stages marked by a version that noted no digests


def verify(path: Path, *, weights: bool = True) -> Verified:
    """Compare every file that a mark names with its digest; without `weights` only records.

    A run may go on meanwhile: before a file is replaced its new digest is noted, so a difference counts only if the
    marks read afterwards do not explain it.
    """
    found = _compare(path, weights=weights)
    return _compare(path, weights=weights) if found.faults else found


def require_sound(path: Path, *, weights: bool = True) -> None:
    """Raises DataError naming the first file that is not as its stage left it."""
    if faults := verify(path, weights=weights).faults:
        more = f" (and {len(faults) - 1} more: internalize verify {path})" if len(faults) > 1 else ""
        raise DataError(f"{path}/{faults[0]}{more}")


def _compare(path: Path, *, weights: bool) -> Verified:
    marks, _ = read_lines(path)
    allowed = _allowed(marks)
    checked = [name for name in allowed if weights or Path(name).suffix not in WEIGHTS]
    present = {name: _digest(path / name) if (path / name).is_file() else "" for name in checked}
    faults = [_fault(name, *allowed[name], present[name]) for name in checked if present[name] not in allowed[name][1]]
    unmarked = sorted(name for name in _listed(path) if name not in allowed)
    return Verified(tuple(checked), tuple(faults), tuple(unmarked), tuple(m.stage for m in marks if not m.chain))


def _allowed(marks: Iterable[StageMark]) -> Mapping[str, tuple[Stage, set[str]]]:
    """By file: the stage that finished it last, and what its digest may be now ("": the file may be missing)."""
    found: dict[str, tuple[Stage, set[str]]] = {}
    noted: dict[str, tuple[Stage, str]] = {}  # what a stage has begun to write
    for mark in marks:
        for name, digest in mark.files.items():
            held = found[name][1] if mark.begun and name in found else set()
            found[name] = (mark.stage, {*held, digest})
            noted[name] = (mark.stage, digest)
        if not mark.begun:  # all that the stage has noted is written, also in the folders of earlier iterations
            written = [name for name, (stage, _) in noted.items() if stage == mark.stage]
            found |= {name: (mark.stage, {noted.pop(name)[1]}) for name in written}
    return found


def _fault(name: str, stage: Stage, allowed: set[str], present: str) -> str:
    wrote = f"the stage {stage.kind} of iteration {stage.iteration}"
    if not present:
        return f"{name}: is missing, though {wrote} is finished"
    return (
        f"{name}: is not as {wrote} wrote it (SHA-256 {present[:12]}, expected {' or '.join(a[:12] for a in allowed)})"
    )


def _listed(path: Path) -> Iterator[str]:
    for folder, _, files in os.walk(path):
        for file in files:
            name = Path(folder, file).relative_to(path).as_posix()
            if _LISTED.fullmatch(name) and not file.startswith("."):
                yield name
