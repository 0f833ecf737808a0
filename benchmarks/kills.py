"""What is lost when a part of a run is killed: nothing may be, and the run tells each loss of a part in one line.

    python -m benchmarks.kills driver     the process of `internalize run`
    python -m benchmarks.kills worker     a worker of Ray, of two
    python -m benchmarks.kills rank       a process of a launched training, of two
    python -m benchmarks.kills vllm       a server that the run has started; --vllm: the Python of a real vLLM

The laboratory's policy plays, learns and is measured by the real command line. SIGKILL strikes at random moments; a run
that ends with exit code 3 is gone on with, and one that ends well must have the records and weights of an undisturbed
one. Without --vllm the server is the double of tests/vllm_double.py. Needs Linux.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx
import psutil

import internalize.training.policy  # noqa: F401 - before the forks, as it takes seconds
from benchmarks.integrity import command_in_child, contents

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "seed = 0\niterations = 2\n[model]\nsource = 'lab'\nprotocol = 'bracket'\nmax_context = 640\n[env]\nname = 'lab'\n"
    "[rollout]\ntasks = 12\nattempts = 1\nmax_steps = 6\nmax_action_tokens = 8\nrequire_success = false\n"
    "[extract]\nmin_support = 1\nmax_p = 1.0\n[distill]\ndivergence = 'sft'\nfilter = 'none'\ntasks = 12\nepochs = 2\n"
    "batch = 4\nheld_out = 0.0\n[evaluate]\ntasks = 12\nfinal_tasks = 4\ndrift = 0\nresamples = 100\n"
    "[compute]\nbatch = 4\n"
)
WHERE = {
    "driver": "",
    "worker": "rollout = 'ray'\nreplicas = 2\n",
    "rank": "train = 'accelerate'\ndevices = 2\n",
    "vllm": "engine = 'vllm'\n[compute.vllm]\npython = PYTHON\noptions = OPTIONS\nstarts_within = 3600\n",
}
TOLD = {
    "driver": "",
    "worker": "a worker was lost",
    "rank": "the training on several processes was ended",
    "vllm": "was lost",
}
CLOSE = 1e-4  # of numbers, where a server's batches differ


class Ended(NamedTuple):
    """How a run ended, and what it said."""

    code: int
    said: str


def processes(run: int, words: str) -> list[psutil.Process]:
    """The processes below a run whose command line has these words."""
    found = []
    try:
        for process in psutil.Process(run).children(recursive=True):
            try:
                if words in " ".join(process.cmdline()):
                    found.append(process)
            except psutil.Error:  # it has just ended
                continue
    except psutil.Error:
        pass
    return found


def targets(part: str, run: int) -> list[int]:
    """What can be killed now."""
    if part == "driver":
        return [run]
    if part == "worker":
        return [one.pid for one in processes(run, "ray::Worker")]
    if part == "rank":
        return [one.pid for one in processes(run, " -m internalize.training.launched") if " -u " in _words(one)]
    # One that is killed again and again before it answers is given up, as it should be.
    return [child.pid for guard in processes(run, "guard.py") if _answers(guard) for child in guard.children()]


def _answers(guard: psutil.Process) -> bool:
    port = re.search(r"--port (\d+)", _words(guard))
    try:
        return bool(port and httpx.get(f"http://127.0.0.1:{port[1]}/health", timeout=5).is_success)
    except httpx.HTTPError:
        return False


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "guard.py"


def play(recipe: Path, out: Path, strike: Callable[[multiprocessing.Process], None]) -> Ended:
    """`internalize run --resume` in a process of its own, which `strike` may disturb."""
    context, said = multiprocessing.get_context("fork"), recipe.with_name("said")
    arguments, begun = ["run", str(recipe), "--out", str(out), "--resume"], context.Event()
    run = context.Process(target=command_in_child, args=(arguments, said, begun))
    run.start()
    begun.wait()
    strike(run)
    run.join()
    return Ended(int(run.exitcode or 0), said.read_text(errors="replace"))


def same(a: Any, b: Any) -> bool:
    """Whether two records are the same, numbers up to `CLOSE`."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= CLOSE
    return bool(a == b)


def records(run: Path) -> dict[str, object]:
    """Those of a run, without what its servers printed and hold."""
    return {name: found for name, found in contents(run).items() if not name.startswith("vllm/")}


class Kills:
    """Strikes until `most` kills have struck, and counts them."""

    def __init__(self, part: str, most: int, seed: int, span: float) -> None:
        self._part, self.left, self._span, self._draw = part, most, span, random.Random(f"{part} {seed}")

    def __call__(self, run: multiprocessing.Process) -> None:
        """Kill a part at a random moment, again and again while the run lasts."""
        while self.left and run.pid:
            while run.is_alive() and not targets(self._part, run.pid):
                run.join(0.05)
            run.join(self._draw.uniform(0, self._span))
            found = targets(self._part, run.pid)
            if not run.is_alive():
                return
            if not found:  # it has ended meanwhile, as a training does
                continue
            os.kill(self._draw.choice(found), signal.SIGKILL)
            self.left -= 1
            if self._part == "driver":
                return


@click.command(help=__doc__)
@click.argument("part", type=click.Choice([*WHERE]))
@click.option("--count", default=10, show_default=True, help="Kills.")
@click.option("--seed", default=0, show_default=True)
@click.option("--vllm", type=click.Path(path_type=Path), help="Python of an environment that holds vLLM for CPUs.")
def main(part: str, count: int, seed: int, vllm: Path | None) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        double = folder / "python"
        double.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.vllm_double "$@"\n')
        double.chmod(0o755)
        recipe, options = folder / "recipe.toml", ["--enforce-eager"] if vllm else []
        text = (SETTINGS + WHERE[part]).replace("OPTIONS", json.dumps(options))
        recipe.write_text(text.replace("PYTHON", json.dumps(str((vllm or double).absolute()))))
        began = time.monotonic()
        whole = play(recipe, folder / "whole", lambda _: None)
        took = time.monotonic() - began
        if whole.code:
            raise click.ClickException(f"the undisturbed run ended with {whole}")
        click.echo(f"an undisturbed run takes {took:.0f} s")
        kills, tally, wrong = Kills(part, count, seed, 0.3 * took), Counter[str](), list[str]()
        while kills.left:
            out, code = folder / "killed", 3
            shutil.rmtree(out, ignore_errors=True)
            while code:
                ended = play(recipe, out, kills)
                code = ended.code
                tally[f"exit {code}"] += 1
                if TOLD[part]:
                    tally["kills told"] += ended.said.count(TOLD[part])
                if code not in {0, 3, -signal.SIGKILL}:
                    raise click.ClickException(f"ended with {ended}")
            found, wanted = records(out), records(folder / "whole")
            wrong += [each for each in found.keys() | wanted.keys() if not same(found.get(each), wanted.get(each))]
        counts = ", ".join(f"{number} x {kind}" for kind, number in sorted(tally.items()))
        click.echo(f"{part}: {count} kills, {counts}; {len(wrong)} files differ {sorted(set(wrong))[:8]}")
        sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
