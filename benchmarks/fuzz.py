"""Every kind of input file, damaged in ways nobody thought of: a command may refuse it in a sentence, and never break.

    python -m benchmarks.fuzz                                ten seconds for each kind of file
    python -m benchmarks.fuzz --seconds 600 logs             ten minutes for one
    python -m benchmarks.fuzz --seconds 600 --at-once 4      ten minutes for each, four kinds at a time

Valid files are changed in their values (odd ones in every place), lines and bytes. Whatever reads such files for a
user then reads them, by the command line where that takes milliseconds. A fault is an exception that is no sentence,
a message of several lines, a file that takes a minute of a core or 12 GB, or the end of the process; it is printed
with the seed that makes the file again. The same seed, the same files.
"""

from __future__ import annotations

import copy
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks.input_files import KINDS
from internalize.errors import InternalizeError

LONGEST = 60  # seconds of processor time for a file
MEMORY = 12 << 30  # bytes of address space
HEAD = 4096  # bytes at the start of a file, where most formats say what follows
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "\x00", "\x1b[2J",
    "\ud800", "\u202e", "x" * 20_000, "../../etc/passwd", "{}", "[", "1e999", "2026-13-45", "<|im_end|>", [], {}, [[]],
    [None], {"": None}, {"role": "user"}, ["x", 1, None], {"a": {"b": [1]}},
)  # fmt: skip
TOKENS = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\x00", b"\xff", b"\\u0000", b"\\ud800", b"null", b"NaN", b"-", b"1e999",
          b"'''", b"=", b".", b"[[", b"\xef\xbb\xbf", b"[" * 3000, b"{\"a\":" * 3000, b"9" * 5000, b"<a b=\"" * 50, b"a." * 500)  # fmt: skip


def changed(data: bytes, draw: random.Random) -> bytes:
    """A valid file with up to four things changed."""
    for _ in range(draw.randint(1, 4)):
        data = draw.choice((_value, _value, _value, _bytes, _lines, _token, _token))(data, draw)
    return data


def _value(data: bytes, draw: random.Random) -> bytes:
    """Something odd in one place of one JSON line, or of a whole JSON file; else in place of a TOML value."""
    lines = data.split(b"\n")
    numbers = [n for n, line in enumerate(lines) if line.strip()]
    if not numbers:
        return data
    number = draw.choice(numbers)
    whole = _json(data)
    if whole is not None:
        return _dumped(_odd_inside(whole, draw))
    if (value := _json(lines[number])) is not None:
        lines[number] = _dumped(_odd_inside(value, draw))
    elif b"=" in lines[number]:
        key = lines[number].partition(b"=")[0]
        lines[number] = key + b"= " + _dumped(draw.choice(ODD))
    return b"\n".join(lines)


def _json(data: bytes) -> Any:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict | list) else None


def _dumped(value: object) -> bytes:
    try:
        return json.dumps(value).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return b"{}"


def _odd_inside(value: Any, draw: random.Random) -> Any:
    root = copy.deepcopy(value)
    place = root
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return root
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.75:
            place = place[key]
            continue
        what = draw.randrange(4)
        if what == 0 and isinstance(place, dict):
            del place[key]
        elif what == 1 and isinstance(place, dict):
            place[draw.choice(("x", "", "content", "steps", "\ud800"))] = place.pop(key)
        else:
            place[key] = copy.deepcopy(draw.choice(ODD))
        return root


def _bytes(data: bytes, draw: random.Random) -> bytes:
    if not data:
        return data
    start = draw.randrange(draw.choice((len(data), min(len(data), HEAD))))
    end = min(len(data), start + draw.choice((1, 1, 2, 8, 64)))
    part = bytes(draw.randrange(256) for _ in range(draw.choice((0, 1, end - start))))
    return data[:start] + draw.choice((part, data[start:end] * 2, b"")) + data[end:]


def _lines(data: bytes, draw: random.Random) -> bytes:
    lines = data.split(b"\n")
    number = draw.randrange(len(lines))
    what = draw.randrange(4)
    if what == 0:
        lines.insert(number, lines[draw.randrange(len(lines))])
    elif what == 1:
        del lines[number]
    elif what == 2:
        lines[number] = lines[number][: len(lines[number]) // 2]
    else:
        draw.shuffle(lines)
    return b"\n".join(lines)


def _token(data: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(data) + 1)
    return data[:place] + draw.choice(TOKENS) + data[place:]


@dataclass
class Found:
    """What came of one kind: files read, and faults by where they were raised."""

    files: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)


def fuzz(name: str, seeds: Iterator[int], folder: Path) -> Found:
    """Read changed files of a kind, one for each seed."""
    kind, found = KINDS[name], Found()
    (folder / "valid").mkdir(parents=True)
    valid = kind.valid(folder / "valid")
    file, empty_folder = folder / f"input{kind.suffix}", folder / "out"
    empty_folder.mkdir()
    file.write_bytes(valid[0])
    kind.read(file, empty_folder)  # imports what it needs, and shows that valid files are read
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        shutil.rmtree(empty_folder, ignore_errors=True)
        empty_folder.mkdir()
        file.write_bytes(changed(draw.choice(valid), draw))
        found.files += 1
        try:
            with _bounded():
                kind.read(file, empty_folder)
        except InternalizeError as error:
            if len(str(error).splitlines()) != 1:
                _note(found, f"a message of several lines: {str(error)[:80]!r}", seed, "")
        except Exception as error:  # noqa: BLE001 - finding these is what it is for
            _note(found, _where(error), seed, str(error)[:200])
    return found


@contextmanager
def _bounded() -> Iterator[None]:
    """Raises TimeoutError if what is inside takes too long."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {LONGEST} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def _where(error: Exception) -> str:
    """The innermost line of the package that an exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    at = [*frames[-1:], *(f for f in frames if "/internalize/" in f.filename)][-1]
    return f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}"


def _note(found: Found, where: str, seed: int, message: str) -> None:
    found.faults[where] += 1
    found.first.setdefault(where, f"seed {seed}: {message}")


def _until(seconds: float, first: int) -> Iterator[int]:
    """Seeds for so long, from when the first is asked for."""
    deadline, seed = time.monotonic() + seconds, first
    while time.monotonic() < deadline:
        yield seed
        seed += 1


def report(name: str, found: Found) -> str:
    """One line, and one for each place that a fault came from."""
    faults = (f"  {count:5} x {where}  ({found.first[where]})" for where, count in found.faults.most_common())
    return "\n".join((f"{name:14} {found.files:7} files, {found.faults.total():4} faults", *faults))


def apart(name: str, seconds: float, seed: int) -> bool:
    """Fuzz a kind in a process of its own, print what came of it; whether that was nothing."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "benchmarks.fuzz", name, "--seconds", str(seconds), "--seed", str(seed)]
        ended = subprocess.run([*command, "--here", folder], capture_output=True, text=True, check=False)
        said = ended.stdout.strip() or f"{name:14} ended by itself: {ended.returncode} {ended.stderr.strip()[-1000:]}"
        if ended.returncode < 0:
            kept = shutil.copy(next(Path(folder, "f").glob("input*")), tempfile.mkdtemp())
            said += f"\n  signal {-ended.returncode} at the file {kept}"
    print(said, flush=True)
    return ended.returncode == 0


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(KINDS)))
@click.option("--seconds", default=10.0, help="For each kind.")
@click.option("--seed", default=0, help="The first.")
@click.option("--at-once", default=1, help="Kinds at a time, each in a process of its own.")
@click.option("--here", type=click.Path(path_type=Path), hidden=True)
def main(names: tuple[str, ...], seconds: float, seed: int, at_once: int, here: Path | None) -> None:
    if here is None:
        with ThreadPoolExecutor(at_once) as pool:
            sound = list(pool.map(lambda name: apart(name, seconds, seed), names or KINDS))
        sys.exit(not all(sound))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = fuzz(names[0], _until(seconds, seed), here / "f")
    print(report(names[0], found), flush=True)
    os._exit(bool(found.faults))  # libraries that read models may wait for their threads for ever


if __name__ == "__main__":
    main()
