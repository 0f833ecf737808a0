"""What experience written by a language model costs and what arrives: ours, and the paper's released pipeline.

    python -m benchmarks.extraction                                            ours
    python -m benchmarks.extraction --authors CHECKOUT/experience_extraction   and theirs, on the same server

Both get the same recorded episodes of the same tasks, the same held pool, and answers from one scripted server that
waits the same time before each; both may have the same number of requests under way. The scripted writer has two new
items to offer for each task, and one held item to delete for each of the first tasks; whatever it is asked, it answers
in the form that the prompt demands. Nothing is lost if the pool ends with every new item and without the deleted ones.
With faults, a share of the requests fails (429, 500, a dropped or cut connection, broken JSON, no choices, no content),
and a command that says work is left is called again, as a user would. In a third run requests succeed, and a share of
the answers ends in the middle, as a model's own answers do.

Theirs runs unchanged, by its own command, from a working folder that holds the recorded episodes as if its rollouts had
ended; its checkout has to be set up as its README says (.env and packages; `--python` names their interpreter). Seconds
are of the whole command and from the first request to the last; a machine with other work makes both larger.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from internalize.experience.pool import ExperiencePool, load_pool, save_pool
from internalize.formats.official import RolloutLine, to_rollout
from internalize.records import Experience, Trajectory
from internalize.runs.store import write_jsonl
from tests.faulty_server import NO_ANSWER, FaultyServer, Reply
from tests.writer import add, attempt, edits, held_ids, keep_all, stage_of, task_number

HELD = tuple(f"When a {word} is shown, read it before you go on." for word in ("label", "list", "map", "note"))
KINDS = [kind for kind in NO_ANSWER if kind != "slow"]  # waiting for a time-out would be all that is measured
RETOLD = "It looked into the box. Then it answered."
CALLS = 20  # of one command, at most
_OBJECT = re.compile(r"^\{\n.*?^\}", re.MULTILINE | re.DOTALL)
RECIPE = """
[extract]
source = "external"
endpoint = "writer"
add = 1000
[endpoints.writer]
base_url = "{url}"
model = "scripted"
concurrency = {at_once}
"""


class Timed(FaultyServer):
    """Knows when the first request came and when the last was done with."""

    first = last = 0.0

    async def _respond(self, route: str, key: str, body: dict[str, Any], writer: Any) -> bool:
        self.first = self.first or time.monotonic() - self.delay
        try:
            return await super()._respond(route, key, body, writer)
        finally:
            self.last = time.monotonic()


class Line(NamedTuple):
    """One pipeline under one condition."""

    name: str
    seconds: float  # of the command
    asking: float  # from the first request to the last
    processor: float
    calls: int
    requests: int
    faults: int
    pool: frozenset[str]  # texts
    ended: str


class Theirs(NamedTuple):
    """Where their code is, and what runs it."""

    folder: Path
    python: str


class Setting(NamedTuple):
    """What both pipelines get."""

    tasks: int
    attempts: int
    size: int  # characters of an observation
    at_once: int

    @property
    def episodes(self) -> list[Trajectory]:
        return [
            attempt(task, float(n % 2), n=n, steps=4, size=self.size)
            for n in range(self.attempts)
            for task in range(self.tasks)
        ]

    @property
    def wanted(self) -> frozenset[str]:
        """The texts of a pool in which nothing is lost."""
        new = {text for task in range(self.tasks) for text in offered(task)}
        return frozenset(new | {*HELD} - {doomed(task) for task in range(self.tasks)})


def offered(task: int) -> tuple[str, str]:
    kind = "".join("abcdefghijklmnopqrstuvwxyz"[n] for n in divmod(task, 26))
    return f"When kind {kind} is asked, look inside first.", f"When kind {kind} is empty, open the next box."


def doomed(task: int) -> str:
    """The held item that the attempts at a task show to be wrong, if any."""
    return HELD[task] if task < len(HELD) - 1 else ""


def ours(text: str) -> Any:
    """The answer to one of our prompts."""
    stage = stage_of(text)
    if stage == "summary":
        return {"summary": RETOLD}
    if stage == "reconcile":
        return keep_all(text)
    task = task_number(text)
    wrong = [i for i in held_ids(text) if doomed(task) and f"[{i}] {doomed(task)}" in text]
    gone = [{"op": "DELETE", "targets": wrong, "text": "", "reason": "attempt 1 shows it"}] if wrong else []
    return edits(*(add(item) for item in offered(task)), *gone)


def theirs(text: str) -> str:
    """The answer to one of their prompts: a retelling, a critique, a task's operations, or the batch's."""
    if "<Experiences>" in text:
        task = task_number(text)
        said = [*offered(task), *([f"Wrong: {doomed(task)}"] if doomed(task) else [])]
        return "<Experiences>\n" + "\n".join(f"- {item}" for item in said) + "\n</Experiences>"
    if "Batch Operations:" in text:
        listed = [json.loads(found) for found in _OBJECT.findall(text.rpartition("Batch Operations:")[2])]
        return json.dumps(listed)
    if "New Experiences:" in text:
        held, _, new = text.partition("New Experiences:")
        ids = {said: name for name, said in re.findall(r"^\[(\w+)\]\. (.*)$", held, re.MULTILINE)}
        return json.dumps([_operation(said, ids) for said in re.findall(r"^- (.*)$", new, re.MULTILINE)])
    return RETOLD


def _operation(said: str, ids: dict[str, str]) -> dict[str, Any]:
    if said.startswith("Wrong: "):
        return {"operation": "DELETE", "id": ids[said.removeprefix("Wrong: ")], "content": None}
    return {"operation": "ADD", "id": None, "content": said}


def reply(messages: list[dict[str, Any]], _: object) -> str:
    text = str(messages[0]["content"])
    return theirs(messages[-1]["content"]) if messages[0]["role"] == "system" else json.dumps(ours(text))


def breaking_off(share: float, seed: int) -> Reply:
    """Answers whole to all but a share of the requests, and with the first half of its words to those."""
    draw = random.Random(f"{seed} broken off")

    def half(messages: list[dict[str, Any]], schema: dict[str, Any] | None) -> str:
        text = reply(messages, schema)
        return text[: len(text) // 2] if draw.random() < share else text

    return half


def run_ours(server: Timed, setting: Setting, folder: Path) -> tuple[list[str], Path]:
    """The command, and the pool that it writes."""
    write_jsonl(folder / "rollouts.jsonl", setting.episodes)
    save_pool(
        ExperiencePool(tuple(Experience.new(t, "principle", "by hand") for t in HELD), 1000), folder / "held.json"
    )
    (folder / "recipe.toml").write_text(RECIPE.format(url=server.base_url, at_once=setting.at_once))
    files = [folder / "rollouts.jsonl", "--out", folder / "pool.json", "--pool", folder / "held.json"]
    command = [sys.executable, "-m", "internalize.cli", "extract", *files, "--recipe", folder / "recipe.toml"]
    return [str(part) for part in command], folder / "pool.json"


def run_theirs(server: Timed, setting: Setting, folder: Path, python: str) -> tuple[list[str], Path]:
    """Their command on its second step: the first is marked done, so that there is a held pool to start from."""
    experiment, step = "bench", folder / "data" / "web" / "train" / "bench"
    for name in ("epoch_0", "step_1"):
        (step / name).mkdir(parents=True)
    asked = [f"Which number is in box {task}?" for task in range(setting.tasks)]
    rows = [{"id": n, "problem": question, "groundtruth": "3"} for n, question in enumerate(asked)]
    write_lines(folder / "data.jsonl", rows * 2)
    write_lines(step / "epoch_0" / "shuffled_data.jsonl", rows * 2)
    (step / "stats.json").write_text(json.dumps({"step_0": {"epoch": 0, "batch": 0, "complete": True}}))
    (step / "step_1" / "experiences.json").write_text(json.dumps({f"G{n}": text for n, text in enumerate(HELD)}))
    lines = [to_rollout(trajectory, number) for number, trajectory in enumerate(setting.episodes)]
    write_jsonl(step / "step_1" / "rollout.jsonl", [_known(line) for line in lines])
    options = {
        "mode": "prompt", "domain": "web", "experience_backend": "local", "experiment_name": experiment,
        "data_file": folder / "data.jsonl", "epochs": 1, "batchsize": setting.tasks, "grpo_n": setting.attempts,
        "rollout_concurrency": setting.at_once, "max_pool_size": 1000, "local_model_name": "scripted",
        "local_base_url": server.base_url,
    }  # fmt: skip
    given = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    return [python, "-m", "training_free_grpo.train_experience", *given], step / "step_2" / "experiences.json"


def _known(line: RolloutLine) -> RolloutLine:
    return line.model_copy(update={"groundtruth": "3"})


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def texts_of(pool: Path) -> frozenset[str]:
    """The texts of a pool file of either kind."""
    if not pool.exists():
        return frozenset()
    found = json.loads(pool.read_text())
    is_theirs = all(isinstance(value, str) for value in found.values())
    return frozenset(found.values()) if is_theirs else frozenset(item.text for item in load_pool(pool).items)


def measure(name: str, server: Timed, setting: Setting, where: Path, theirs: Theirs) -> Line:
    """Prepare the folder `where` and call the command in it until it says that it is done."""
    own = name == "ours"
    command, pool = run_ours(server, setting, where) if own else run_theirs(server, setting, where, theirs.python)
    env = os.environ | {"PYTHONPATH": str(Path.cwd() if own else theirs.folder)}
    started, spent = time.monotonic(), _processor()
    codes = [3]
    while codes[-1] == 3 and len(codes) <= CALLS:
        done = subprocess.run(command, cwd=where, env=env, capture_output=True, check=False)  # noqa: S603 - made here
        codes.append(done.returncode)
    ended = "complete" if done.returncode == 0 else f"exit {done.returncode}: {done.stderr.decode()[-300:]}"
    return Line(
        name, time.monotonic() - started, server.last - server.first, _processor() - spent, len(codes) - 1,
        len(server.requests), server.faults.total(), texts_of(pool), ended,
    )  # fmt: skip


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def show(line: Line, setting: Setting) -> None:
    new, gone = setting.wanted - {*HELD}, {*HELD} - setting.wanted
    print(
        f"{line.name:8}{line.seconds:9.1f}{line.asking:9.2f}{line.processor:9.1f}{line.calls:7d}{line.requests:10d}"
        f"{line.faults:8d}   {len(new & line.pool):3d} of {len(new):3d}   {len(gone - line.pool):2d} of {len(gone)}"
        f"   {len(line.pool - setting.wanted - gone):2d}   {line.ended}",
        flush=True,
    )


@click.command(help=__doc__)
@click.option("--authors", type=click.Path(path_type=Path, file_okay=False), help="Their experience_extraction folder.")
@click.option("--python", default=sys.executable, help="Interpreter that has their packages.")
@click.option("--tasks", default=20, show_default=True, type=click.IntRange(4, 400))
@click.option("--attempts", default=5, show_default=True, type=click.IntRange(2))
@click.option("--sizes", default="300,3000", show_default=True, help="Characters of an observation, one run each.")
@click.option("--latency", default=0.05, show_default=True, help="Seconds before each answer.")
@click.option("--at-once", default=16, show_default=True, help="Requests under way.")
@click.option("--share", default=0.3, show_default=True, help="Share of the requests that fail, in the second run.")
@click.option("--spoilt", default=0.2, show_default=True, help="Share of the answers that end early, in the third.")
@click.option("--seed", default=0, show_default=True, help="Of the faults.")
def main(  # noqa: PLR0913 - the conditions
    *, authors: Path | None, python: str, tasks: int, attempts: int, sizes: str, latency: float, at_once: int,
    share: float, spoilt: float, seed: int,
) -> None:  # fmt: skip
    theirs_at = Theirs((authors or Path()).resolve(), python)
    print(f"{tasks} tasks, {attempts} attempts each, {latency:g} s an answer, {at_once} requests at once")
    for size in map(int, sizes.split(",")):
        setting = Setting(tasks, attempts, size, at_once)
        for failing, broken in ((0.0, 0.0), (share, 0.0), (0.0, spoilt)):
            print(
                f"\nobservations of {size} characters; failing requests {failing:.0%}, broken-off answers {broken:.0%}"
            )
            print("          command   asking  process.  calls  requests  faults   new items    deleted  odd")
            for name in ("ours", "theirs") if authors else ("ours",):
                with (
                    tempfile.TemporaryDirectory() as folder,
                    Timed(breaking_off(broken, seed), share=failing, seed=seed, kinds=KINDS, delay=latency) as server,
                ):
                    show(measure(name, server, setting, Path(folder), theirs_at), setting)


if __name__ == "__main__":
    main()
