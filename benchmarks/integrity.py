"""What kills, full disks and damaged files do to a run: nothing may be lost, doubled or different without a word.

    python -m benchmarks.integrity kills     200 random kills over four recipes, a quarter by SIGTERM and SIGHUP
    python -m benchmarks.integrity disk      20 sizes of a disk that fills up, then gets room; --start N goes on
    python -m benchmarks.integrity damage    every file of a run deleted, cut, doubled and with a bit flipped

A tiny model plays, learns and is measured by the real command line. A run that was disturbed must end with the records
and weights of one left alone, or be refused in one sentence that names the file. `disk` needs `unshare` and `mount`.
"""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.synchronize
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import click

from internalize.cli.main import main as command_line
from internalize.cli.output import stop_on_signals
from internalize.environments import registry
from tests.fluent import save_fluent

DISK = 250_000_000  # bytes: a run begins only where there is room for some iterations
LIMIT = 300.0  # seconds that one run may take
SETTINGS = (
    'env.name="toy"\nenv.options={size=24}\niterations=2\nmodel.protocol="bracket"\nmodel.batch=8\n'
    "rollout.tasks=4\nrollout.attempts=2\nrollout.max_steps=3\nrollout.max_action_tokens=12\n"
    'evaluate.tasks=4\nevaluate.final_tasks=2\nevaluate.resamples=100\ndistill.tasks=8\ndistill.filter="none"\n'
    'distill.epochs=1\ndistill.batch=4\ndistill.lora_r=4\ninject.pattern="stepwise"\n'
)
RECIPES = {
    "gate": 'gate.rule="retry"\ndistill.lr=0.5\nevaluate.drift=2\n',
    "refresh": 'distill.preset="sdft"\ndistill.refresh=1\ndistill.save_steps=1\n',
    "replay": "distill.replay=0.5\ndistill.lora_r=0\ndistill.lr=1e-4\n",
    "instance": 'extract.granularity="instance"\ninject.pattern="global"\ngate.rule="average"\ndistill.lr=0.1\n',
}
NOT_COMPARED = {
    ".lock",
    "progress.jsonl",
    "report.md",
    "report.html",
    "figure.png",
}  # hold times of day, or are made anew
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "deleted": lambda _: None,
    "cut": lambda data: data[: len(data) // 2],
    "last line lost": lambda data: b"".join(data.splitlines(keepends=True)[:-1]),
    "doubled": lambda data: data + data,
    "a line doubled": lambda data: b"".join([*data.splitlines(keepends=True)[:1], data]),
    "bit flipped": lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :],
}


class Ended(NamedTuple):
    """How a process ended: its exit code (negative: killed), and what it said on standard error."""

    code: int
    said: str


@dataclass(frozen=True)
class Bench:
    """A folder with the model, one recipe file for each name, and an undisturbed run of each that was needed."""

    folder: Path
    whole: dict[str, Path] = field(default_factory=dict)

    def recipe(self, name: str) -> Path:
        """The recipe file."""
        file = self.folder / f"{name}.toml"
        source = f"model.source={json.dumps(str(self.folder / 'model'))}"
        merged = dict(line.split("=", 1) for line in [*(SETTINGS + RECIPES[name]).splitlines(), source])
        file.write_text("".join(f"{key} = {value}\n" for key, value in merged.items()))
        return file

    def undisturbed(self, name: str) -> Path:
        """A run of the recipe that was left alone."""
        if name not in self.whole:
            out = self.folder / f"{name}-whole"
            ended = self.run(name, out)
            assert ended.code == 0, ended
            self.whole[name] = out
        return self.whole[name]

    def run(self, name: str, out: Path, disturb: Callable[[multiprocessing.Process], None] | None = None) -> Ended:
        """`internalize run --resume` in a process that `disturb` may kill once it has begun."""
        context, said = multiprocessing.get_context("fork"), self.folder / "said"
        begun = context.Event()
        arguments = ["run", str(self.recipe(name)), "--out", str(out), "--resume"]
        child = context.Process(target=command_in_child, args=(arguments, said, begun))
        child.start()
        if disturb:
            begun.wait(LIMIT)
            disturb(child)
        child.join(LIMIT)
        if child.exitcode is None:
            child.kill()
            child.join()
        return Ended(int(child.exitcode or 0), said.read_text(errors="replace") if said.exists() else "")


def command_in_child(arguments: list[str], said: Path, begun: multiprocessing.synchronize.Event) -> None:
    """The command line in a process that was forked for it, with standard error in the file `said`."""
    registry.BUILTIN["toy"] = registry.Builtin("tests.toy", "Toy", "boxes")
    with said.open("w") as log:
        os.dup2(log.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")  # a test may have put others in their place
    stop_on_signals()
    begun.set()
    command_line(arguments)


def bench(folder: Path) -> Bench:
    """The model is trained for a few seconds, so that it plays well enough for something to be learnt."""
    registry.BUILTIN["toy"] = registry.Builtin("tests.toy", "Toy", "boxes")
    if not (folder / "model").exists():
        save_fluent(folder / "model")
    return Bench(folder)


def contents(run: Path) -> dict[str, object]:
    """Every record and weight of a run, without the seconds that things took."""
    found: dict[str, object] = {}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        name, data = path.relative_to(run).as_posix(), path.read_bytes()
        if path.name in NOT_COMPARED or path.suffix in {".bin", ".tfevents"} or "/runs/" in f"/{name}":
            continue
        if path.suffix in {".json", ".jsonl"}:
            lines = data.splitlines() if path.suffix == ".jsonl" else [data]
            found[name] = [_timeless(json.loads(line)) for line in lines]
        else:
            found[name] = data
    return found


def _timeless(value: object) -> object:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if key != "seconds"}
    return [_timeless(inner) for inner in value] if isinstance(value, list) else value


def differences(run: Path, whole: Path) -> list[str]:
    """Names of files that are lost, new or different."""
    a, b = contents(run), contents(whole)
    return sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))


class Tally(NamedTuple):
    """What was done to a recipe's runs, how often it ended in which way, and what was wrong."""

    counts: Counter[str]
    wrong: list[str]


def kills(work: Bench, name: str, most: int, seed: int) -> Tally:
    """Runs killed at random until `most` kills have struck; each run is gone on with until it ends by itself."""
    draw, tally = random.Random(f"{name} {seed}"), Tally(Counter(), [])
    start = time.monotonic()
    whole = work.undisturbed(name)
    took = max(1.0, time.monotonic() - start)
    while tally.counts["kills"] < most:
        out = work.folder / f"{name}-killed"
        shutil.rmtree(out, ignore_errors=True)
        ended = Ended(1, "")
        while ended.code != 0:
            with_sign = draw.choice([signal.SIGKILL] * 6 + [signal.SIGTERM, signal.SIGHUP])
            delay = draw.uniform(0, 0.6 * took) if tally.counts["kills"] < most else LIMIT
            ended = work.run(name, out, partial(_strike, sign=with_sign, delay=delay))
            tally.counts["kills"] += ended.code != 0
            tally.counts[f"exit {ended.code}"] += 1
            if ended.code not in {0, -signal.SIGKILL} and not (ended.code == 3 and "to go on" in ended.said):
                tally.wrong.append(f"{name}: ended with {ended}")
                return tally
        tally.counts["runs"] += 1
        tally.wrong.extend(f"{name}: {odd} differs" for odd in differences(out, whole))
        print(f"  {name}: {tally.counts['kills']} kills, {tally.counts['runs']} runs, {tally.wrong}", flush=True)
    return tally


def _strike(child: multiprocessing.Process, sign: int, delay: float) -> None:
    child.join(delay)
    if child.exitcode is None and child.pid:
        os.kill(child.pid, sign)


def damage(work: Bench, name: str, every: int = 1) -> Tally:
    """Each file of a finished run damaged in each way (or every so-many-th of these), then the run gone on with."""
    whole, tally = work.undisturbed(name), Tally(Counter(), [])
    for number, (file, kind) in enumerate(_damages(whole)):
        if number % every:
            continue
        out = work.folder / f"{name}-damaged"
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        if (changed := DAMAGES[kind]((out / file).read_bytes())) is None:
            (out / file).unlink()
        else:
            (out / file).write_bytes(changed)
        ended = work.run(name, out)
        if ended.code == 0 and not (odd := differences(out, whole)):
            tally.counts["the same again"] += 1
        elif ended.code == 2 and len(ended.said.splitlines()) == 1 and _names(file, ended.said):
            tally.counts["refused by name"] += 1
        else:
            tally.wrong.append(f"{name}: {file} {kind}: {ended} {odd if ended.code == 0 else ''}")
    return tally


def _names(file: str, said: str) -> bool:
    # Marks that were cut off are seen by what later stages wrote, and a run without run.json is none.
    return file in said or file in {"run.json", "progress.jsonl"}


def _damages(whole: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(p for p in whole.rglob("*") if p.is_file()):
        if path.name != ".lock" and path.stat().st_size:
            yield from ((path.relative_to(whole).as_posix(), kind) for kind in DAMAGES)


def disk(work: Bench, name: str, points: int, start: int = 1) -> Tally:
    """A run on disks of growing size, each of which fills up, gets room, and the run gone on with."""
    whole, tally = work.undisturbed(name), Tally(Counter(), [])
    size = sum(p.stat().st_size for p in whole.rglob("*") if p.is_file())
    for number in range(start, points + 1):
        room = size * number // (points + 1)
        with _small_disk(work.folder / "mounted") as mount:
            ended, wrong = _on(mount, work, name, room)
        tally.counts[ended] += 1
        tally.wrong.extend(wrong)
        print(f"  disk {number} of {points}, {room} bytes: {ended}", *wrong, flush=True)
    return tally


@contextmanager
def _small_disk(mount: Path) -> Iterator[Path]:
    mount.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def _on(mount: Path, work: Bench, name: str, room: int) -> tuple[str, list[str]]:
    """How a run ended whose disk had `room` bytes once it had begun, and then more; what was wrong."""
    ended = work.run(name, mount / "run", lambda child: _fill(child, mount, room))
    if ended.code == 0:
        return "had room", []
    if ended.code != 3 or "once there is room" not in ended.said.splitlines()[-1] or "Traceback" in ended.said:
        return "stopped otherwise", [f"{name}, {room} bytes: on a full disk: {ended}"]
    (mount / "filler").unlink()
    again = work.run(name, mount / "run")
    if again.code:
        return "could not go on", [f"{name}, {room} bytes: after it got room: {again}"]
    odd = differences(mount / "run", work.undisturbed(name))
    return "stopped in one sentence, then the same", [f"{name}, {room} bytes: {one} differs" for one in odd]


def _fill(child: multiprocessing.Process, mount: Path, room: int) -> None:
    while child.exitcode is None and not (mount / "run" / "run.json").exists():
        child.join(0.01)
    with (mount / "filler").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(mount).free - room))


def _print(what: str, name: str, tally: Tally) -> bool:
    counts = ", ".join(f"{count} x {kind}" for kind, count in sorted(tally.counts.items()))
    print(f"{what} {name}: {counts}; {len(tally.wrong)} wrong", flush=True)
    for line in tally.wrong[:20]:
        print(f"  {line[:200]} ... {line[-1500:]}" if len(line) > 1700 else f"  {line}", flush=True)  # the end says why
    return not tally.wrong


@click.group()
def main() -> None:
    """See the head of this file."""


@main.command("kills")
@click.option("--count", default=50, help="Kills of each recipe.")
@click.option("--seed", default=0)
@click.option("--recipe", "names", multiple=True, type=click.Choice(list(RECIPES)))
def kills_command(count: int, seed: int, names: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = bench(Path(folder))
        sound = [_print("kills", name, kills(work, name, count, seed)) for name in names or RECIPES]
    sys.exit(not all(sound))


@main.command("damage")
@click.option("--every", default=1, help="Only every so-many-th file and kind of damage.")
@click.option("--recipe", "names", multiple=True, type=click.Choice(list(RECIPES)))
def damage_command(every: int, names: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = bench(Path(folder))
        sound = [_print("damage", name, damage(work, name, every)) for name in names or RECIPES]
    sys.exit(not all(sound))


@main.command("disk")
@click.option("--points", default=20)
@click.option("--start", default=1, help="The first point.")
@click.option("--recipe", "name", default="refresh", type=click.Choice(list(RECIPES)))
@click.option("--apart", is_flag=True, hidden=True)  # in a mount namespace of its own
def disk_command(points: int, start: int, name: str, *, apart: bool) -> None:
    if not apart:
        again = [sys.executable, "-m", "benchmarks.integrity", *sys.argv[1:], "--apart"]
        os.execvp("unshare", ["unshare", "-rm", *again])  # noqa: S606 - of util-linux
    with tempfile.TemporaryDirectory() as folder:
        sound = _print("disk", name, disk(bench(Path(folder)), name, points, start))
    sys.exit(not sound)


if __name__ == "__main__":
    main()
