"""Every kind of input file, damaged in ways nobody thought of: a command may refuse it in a sentence, and never break.

    python -m benchmarks.fuzz                       ten seconds for each kind of file
    python -m benchmarks.fuzz --seconds 600 logs    ten minutes for one

Valid files are changed in their values (odd ones in every place), lines and bytes. Whatever reads such files for a
user then reads them, by the command line where that takes milliseconds. A fault is an exception that is no sentence,
or a message of several lines; it is printed with the seed that makes the file again. The same seed, the same files.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

import internalize
from benchmarks.attacks import attempts
from internalize.cli.main import main as command_line
from internalize.config.schema import load_config
from internalize.environments.html import read as read_html
from internalize.environments.question_files import tasks_of
from internalize.environments.site import Site
from internalize.environments.web.questions import web_task
from internalize.errors import InternalizeError
from internalize.experience.pool import empty, export_official, save_pool
from internalize.records import Experience, PoolEdit
from internalize.report.run_page import run_page
from internalize.report.run_report import load
from internalize.stages.study import configs, load_grid
from tests.unit.report_run import make_run

RECIPES = Path(internalize.__file__).parent / "config" / "recipes"
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 10**30, -(10**400), 0.5, 1e308, float("nan"), float("inf"), "", " ", "x", "\x00", "\x1b[2J",
    "\ud800", "\u202e", "x" * 20_000, "../../etc/passwd", "{}", "[", "1e999", "2026-13-45", "<|im_end|>", [], {}, [[]],
    [None], {"": None}, {"role": "user"}, ["x", 1, None], {"a": {"b": [1]}},
)  # fmt: skip
TOKENS = (b'"', b"{", b"}", b"[", b"]", b",", b":", b"\n", b"\x00", b"\xff", b"\\u0000", b"\\ud800", b"null", b"NaN", b"-", b"1e999",
          b"'''", b"=", b".", b"[[", b"\xef\xbb\xbf", b"[" * 3000, b"{\"a\":" * 3000, b"9" * 5000, b"<a b=\"" * 50, b"a." * 500)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """Valid files of one kind, and what reads one."""

    valid: Callable[[Path], list[bytes]]
    read: Callable[[Path, Path], None]  # the file, and an empty folder
    suffix: str = ".jsonl"


def _cli(*arguments: object) -> None:
    """The command line; what it printed on standard error has to be one line if it refuses."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            command_line([str(one) for one in arguments])
    except SystemExit as ended:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("internalize: ")]
        if ended.code in {2, 3} and len(lines) == 1:
            return
        if ended.code not in {0, None}:
            raise AssertionError(f"exit {ended.code}: {said.getvalue()[:300]}") from ended


def _episodes(_: Path) -> list[bytes]:
    found = [*attempts("a", ("Found:\n1. x", "Always look.")), *attempts("b", ())]
    return [b"".join(_line(t.model_dump(mode="json")) for t in found)]


def _line(value: object) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _pool(folder: Path) -> list[bytes]:
    items = [Experience.new(text, "principle", "x", origins=("a",)) for text in ("Look first.", "When lost, stop.")]
    save_pool(empty(5).apply(PoolEdit(op="ADD", item=item) for item in items), folder / "pool.json")
    return [(folder / "pool.json").read_bytes()]


def _official(_: Path) -> list[bytes]:
    pool = empty(5).apply([PoolEdit(op="ADD", item=Experience.new("Look first.", "principle", "x"))])
    return [json.dumps(export_official(pool, style)).encode() for style in ("dict", "list")]


def _logs(folder: Path) -> list[bytes]:
    (folder / "t.jsonl").write_bytes(_episodes(folder)[0])
    found = []
    for kind in ("chat", "official-rollout", "official-eval"):
        _cli("logs", "export", folder / "t.jsonl", "--format", kind, "--out", folder / f"{kind}.out")
        found.append((folder / f"{kind}.out").read_bytes())
    anthropic = {"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]},
                              {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"a": 1}}]},
                              {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "seen"}]},
                              {"role": "assistant", "content": "done"}], "system": "s", "score": 1}  # fmt: skip
    return [*found, *(file.read_bytes() for file in sorted(folder.glob("case-*"))), _line(anthropic)]


def _claims(_: Path) -> list[bytes]:
    rows = [{"question": "2+2?", "reference": "4", "answer": "four", "id": str(n)} for n in range(3)]
    return [b"".join(map(_line, rows))]


def _questions(_: Path) -> list[bytes]:
    rows = [
        {"question": f"Who is {n}?", "answer": "x", "info": {"type": "easy"}, "root_url": "https://a.example"}
        for n in range(6)
    ]
    return [b"".join(map(_line, rows))]


def _run_files(folder: Path) -> list[bytes]:
    """Which file of a run is changed is part of the input: its name stands in the first line."""
    run = make_run(folder / "run")
    files = sorted(path for path in run.rglob("*") if path.suffix in {".json", ".jsonl"})
    return [path.relative_to(run).as_posix().encode() + b"\n" + path.read_bytes() for path in files]


def _read_run(file: Path, folder: Path) -> None:
    name, _, data = file.read_bytes().partition(b"\n")
    run = folder / "run"
    shutil.copytree(file.parent / "valid" / "run", run)
    target = run / name.decode("ascii", "replace").replace("\x00", "")
    if len(name) > 200 or ".." in target.parts or not target.is_file():
        return
    target.write_bytes(data)
    for command in ("verify", "diagnose", "view"):
        _cli(command, run)
    run_page(load(run))


def _recipes(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(RECIPES.glob("*.toml"))]


def _studies(_: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted((RECIPES / "studies").glob("*.toml"))]


def _pages(_: Path) -> list[bytes]:
    page = ("<!doctype html><html><head><title>A</title><base href='/x/'></head><body><nav>n</nav><h1>T</h1><p>a <b>b</b>"
            "<a href='y?z#w'>l</a><table><tr><td>1</td><td>2</td></tr></table><pre><code>x\n y</code></pre><ul><li>i</ul>"
            "<img alt='p' src='data:x'></body></html>")  # fmt: skip
    return [page.encode(), b"# Title\n\n- a\n- b [l](x.md)\n\n```py\nx\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"]


def _read_page(file: Path, folder: Path) -> None:
    text = file.read_bytes().decode("utf-8", "replace")
    read_html(text, "https://a.example/b/")
    for ending in ("html", "md", "txt"):
        (folder / f"page.{ending}").write_bytes(file.read_bytes())
    site = Site(folder)
    for path, page in site.pages.items():
        assert site.resolve(path) in {path, None}
        for _, address in page.links:
            site.resolve(address)


def _read_episodes(file: Path, folder: Path) -> None:
    _cli("extract", file, "--out", folder / "pool.json")
    _cli("logs", "export", file, "--out", folder / "chat.jsonl")


def _read_pool(file: Path, folder: Path) -> None:
    for command in ("show", "lint"):
        _cli("pool", command, file)
    _cli("pool", "export", file, "--out", folder / "x.json")


def _read_study(file: Path, _: Path) -> None:
    configs(load_grid(file), file)


KINDS: dict[str, Kind] = {
    "recipe": Kind(_recipes, lambda file, _: [load_config(file)].clear(), ".toml"),
    "study": Kind(_studies, _read_study, ".toml"),
    "pool": Kind(_pool, _read_pool, ".json"),
    "official-pool": Kind(_official, lambda f, d: _cli("pool", "import", f, "--out", d / "pool.json"), ".json"),
    "trajectories": Kind(_episodes, _read_episodes),
    "logs": Kind(_logs, lambda f, d: _cli("logs", "import", f, "--out", d / "t.jsonl", "--skip")),
    "claims": Kind(_claims, lambda f, d: _cli("judge", f, "--out", d / "v.jsonl")),
    "questions": Kind(_questions, lambda f, _: [tasks_of(str(f), web_task)].clear()),
    "run": Kind(_run_files, _read_run),
    "page": Kind(_pages, _read_page, ".html"),
}


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
    start = draw.randrange(len(data))
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
    for seed in seeds:
        draw = random.Random(f"{name} {seed}")
        file, empty_folder = folder / f"input{kind.suffix}", folder / "out"
        shutil.rmtree(empty_folder, ignore_errors=True)
        empty_folder.mkdir()
        file.write_bytes(changed(draw.choice(valid), draw))
        found.files += 1
        try:
            kind.read(file, empty_folder)
        except InternalizeError as error:
            if len(str(error).splitlines()) != 1:
                _note(found, f"a message of several lines: {str(error)[:80]!r}", seed, "")
        except Exception as error:  # noqa: BLE001 - finding these is what it is for
            last = traceback.extract_tb(error.__traceback__)[-1]
            own = [f for f in traceback.extract_tb(error.__traceback__) if "/internalize/" in f.filename]
            at = own[-1] if own else last
            _note(found, f"{type(error).__name__} at {Path(at.filename).name}:{at.lineno}", seed, str(error)[:200])
    return found


def _note(found: Found, where: str, seed: int, message: str) -> None:
    found.faults[where] += 1
    found.first.setdefault(where, f"seed {seed}: {message}")


def _until(deadline: float, first: int) -> Iterator[int]:
    seed = first
    while time.monotonic() < deadline:
        yield seed
        seed += 1


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(KINDS)))
@click.option("--seconds", default=10.0, help="For each kind.")
@click.option("--seed", default=0, help="The first.")
def main(names: tuple[str, ...], seconds: float, seed: int) -> None:
    broken = 0
    for name in names or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            found = fuzz(name, _until(time.monotonic() + seconds, seed), Path(folder) / "f")
        broken += sum(found.faults.values())
        print(f"{name:14} {found.files:7} files, {sum(found.faults.values()):4} faults", flush=True)
        for where, count in found.faults.most_common():
            print(f"  {count:5} x {where}  ({found.first[where]})", flush=True)
    sys.exit(broken > 0)


if __name__ == "__main__":
    main()
