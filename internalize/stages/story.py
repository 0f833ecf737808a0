"""One sentence an iteration for the user: what the run learnt, from how much, and how long the rest takes."""

from __future__ import annotations

from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics, own_line
from internalize.experience.pool import read_edits
from internalize.records import Mode, TrainSummary
from internalize.runs import names
from internalize.runs.readers import record, records

from .run import Run


def sentence(run: Run, k: int, seconds: float | None = None) -> str:
    """The sentence on iteration `k`; `seconds` is the duration of an iteration. Reads small files, no trajectory."""
    lines = list(records(run.store.path / names.METRICS, SuiteMetrics))
    suite, planned = run.config.evaluate.split, run.config.iterations
    without, before = _success(lines, suite, "internalized", k), _success(lines, suite, "internalized", 0)
    if not k:
        return f"iteration 0 of {planned}: the starter's success on {suite} is {without}"
    if not run.config.measures(k):
        return f"iteration {k} of {planned}: not measured{_work(run, k)}{_left(seconds, planned - k)}"
    line = own_line(lines, suite, "internalized", k)
    premature = f"; {line.premature_rate:.0%} premature answers" if line and line.results else ""
    return (
        f"iteration {k} of {planned}: success on {suite} {without} without the pool (start {before}), "
        f"{_success(lines, suite, 'in_context', k)} with it"
        f"{premature}{_work(run, k)}{_left(seconds, planned - k)}"
    )


def _success(lines: list[SuiteMetrics], suite: str, mode: Mode, k: int) -> str:
    line = own_line(lines, suite, mode, k)
    return f"{line.success.mean:.1%}" if line and line.success else "not measured"


def _work(run: Run, k: int) -> str:
    """How many trajectories were kept of those played, and the changes of the pool."""
    folder = run.store.iteration(k)
    trained, edits = record(folder / names.TRAINING, TrainSummary), read_edits(folder / names.EDITS)
    tried = trained.accepted + (trained.rejected or 0) if trained else 0
    kept = f"; {trained.accepted} of {tried} episodes trained on" if trained else ""
    added, gone = sum(e.op == "ADD" for e in edits), sum(e.op == "DELETE" for e in edits)
    gate = record(folder / names.GATE, Decision)
    back = "" if gate is None or gate.promote else "; the gate went back to the policy before"
    return f"{kept}; pool of {len(run.pool(k).items)} items (+{added} -{gone}){back}"


def _left(seconds: float | None, iterations: int) -> str:
    return f"; about {_duration(seconds * iterations)} left" if seconds and iterations else ""


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"
