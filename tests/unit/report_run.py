"""A run directory with known answers, for the tests of reports.

Forty dev tasks in two families. The starter solves tasks 0-15, iteration 1 solves 0-19 (with the pool 0-29),
iteration 2 solves 0-27 (with the pool 0-31). With the pool of the next iteration the starter solves 0-29 and
iteration 1 solves 0-33. On test (20 tasks) the starter solves 8, the final policy 12.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internalize.config.schema import Config
from internalize.evaluation.diagnostics import Diagnostics
from internalize.evaluation.metrics import gathered
from internalize.records import (
    EvalResult,
    Experience,
    Injection,
    Message,
    Record,
    Stage,
    StageMark,
    Trajectory,
)
from internalize.runs.files import read_jsonl, write_json, write_jsonl
from internalize.runs.store import RunInfo
from internalize.stages.diagnose import Diagnosis
from tests.steps import act, step

TASKS = 40
SOLVED = {
    (0, "internalized"): 16,
    (1, "internalized"): 20,
    (1, "in_context"): 30,
    (2, "internalized"): 28,
    (2, "in_context"): 32,
}
NASTY = "<script>x</script> [bold red]`www.evil.example` ![i](http://evil.example) \x1b[31m| @all #1 \u202e\n# head"


class TrainFile(Record):
    accepted: int = 30
    rejected: int = 10
    action_tokens: int = 1234
    first_loss: float = 0.9
    last_loss: float = 0.3
    seconds: float = 200.0


class PoolFile(Record):
    cap: int
    items: tuple[Experience, ...]


BEFORE = {1: 30, 2: 34}  # solved with the pool of an iteration by the policy that is then trained on it


def result(k: int, mode: str, task: int, solved: int, suite: str = "dev", pool: int | None = None) -> EvalResult:
    shown = f"p{k if pool is None else pool}" if mode == "in_context" else None
    return EvalResult(
        suite=suite, mode=mode, iteration=k, checkpoint=f"c{k}", pool_version=shown,
        task_id=f"{suite}{task}", family=f"family {task % 2}", success=float(task < solved),
        premature=task % 10 < 4 - 2 * k, turns=4, action_tokens=20, nll=0.5,
    )  # fmt: skip


def results(k: int, final: int = 2) -> list[EvalResult]:
    """All results of one iteration; the starter and `final` are measured on test too."""
    before = BEFORE.get(k, 0)
    made = [result(k - 1, "in_context", task, before, pool=k) for task in range(TASKS) if k]
    made += [result(*key, task, solved) for key, solved in SOLVED.items() if key[0] == k for task in range(TASKS)]
    if k in {0, final}:
        made += [result(k, "internalized", task, 8 if k == 0 else 12, "test") for task in range(20)]
    return made


def trajectory(
    task: int, checkpoint: str, score: float | None, text: str = "search[x]", *, hint: str = ""
) -> Trajectory:
    injection = Injection(item_ids=("i1",), text=hint, served_by="lexical") if hint else None
    steps = (
        step(text=text, call=act("search", "x"), token_ids=(1, 2, 3), seen=text,
             injection=injection, seconds=0.5),
        step(text="answer[y]", call=act("answer", "y"), token_ids=(1, 2)),
    )  # fmt: skip
    return Trajectory(
        id=f"{task}{checkpoint}{hint}", task_id=f"train{task}", env="docs", split="train", iteration=0, seed=0,
        checkpoint=checkpoint, prompt=(Message(role="user", content=f"question {task}"),), steps=steps,
        termination="answered" if score is not None else "failed", score=score,
        failure=None if score is not None else "lost", pattern="stepwise" if hint else "none",
    )  # fmt: skip


def item(text: str, support: int = 12, lift: float = 0.4) -> Experience:
    return Experience.new(text, "principle", "contrast", support=support, lift=lift, iteration=1)


RULES = (item("When the page only names an alias, visit its target."), item("Never answer from memory.", 5, 0.2))


def make_run(path: Path, iterations: int = 2, *, items: Sequence[Experience] = RULES, text: str = "search[x]") -> Path:
    """Write a run of `iterations` finished iterations of two planned."""
    path.mkdir(parents=True, exist_ok=True)
    config = Config(iterations=2)
    dumped = config.model_dump(mode="json")
    write_json(path / "run.json", RunInfo(config=dumped, digest=config.digest, seed=0, versions={"python": "3.11"}))
    for k in range(iterations + 1):
        folder = path / f"iter-{k}"
        folder.mkdir(exist_ok=True)
        write_jsonl(folder / "evaluations.jsonl", results(k))
        if k:
            _write_iteration(folder, k, items, text)
    write_jsonl(path / "metrics.jsonl", [one.metrics for one in remeasure(path)])
    took = {"rollout": 10.0, "extract": 1.0, "collect": 5.0, "distill": 198.0, "evaluate": 30.0}
    marks = [(Stage(iteration=k, kind=kind), took[kind]) for k in range(1, iterations + 1) for kind in took]
    noted = [StageMark(stage=stage, seconds=s, memory=3 << 29) for stage, s in marks]
    write_jsonl(path / "progress.jsonl", noted)
    return path


def remeasure(path: Path) -> tuple[Diagnostics, ...]:
    """Write the diagnostics of the run's evaluations, as a stage does that has just measured them all."""
    info = RunInfo.model_validate_json((path / "run.json").read_bytes())
    folders = sorted(path.glob("iter-*"))
    for folder in folders:
        (folder / "diagnostics.jsonl").unlink(missing_ok=True)
    found = gathered(read_jsonl(folder / "evaluations.jsonl", EvalResult) for folder in folders)
    return Diagnosis(path, Config.model_validate(info.config), ["dev", "test"]).update(found)


def _write_iteration(folder: Path, k: int, items: Sequence[Experience], text: str) -> None:
    policy = f"c{k - 1}"
    rollouts = [trajectory(0, policy, k - 1.0, text), trajectory(1, policy, 2.0 - k, text), trajectory(2, policy, None)]
    write_jsonl(folder / "rollouts.jsonl", rollouts)
    write_jsonl(folder / "teacher.jsonl", [trajectory(3, policy, 1.0, hint=text)])
    write_json(folder / "pool.json", PoolFile(cap=50, items=tuple(items)))
    write_json(folder / "train.json", TrainFile())
