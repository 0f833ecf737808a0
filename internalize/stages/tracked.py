"""What trackers receive besides evaluations: the recipe, the work of each iteration, its checkpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from internalize.config.schema import Config
from internalize.evaluation.gate import Decision
from internalize.experience.pool import read_edits
from internalize.records import Checkpoint, Drift, Record, StageMark, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.marks import read_marks
from internalize.runs.readers import record, records

from .run import Run


def recipe_facts(config: Config) -> dict[str, str]:
    """Every key of a recipe by its dotted name, and the digest of the keys that can change a result."""
    return {"digest": config.digest, **_flat(config.dump())}


def track_iteration(run: Run, k: int) -> None:
    """Send the tracker the metrics of iteration `k`, and its checkpoint with its parent."""
    if run.tracker and run.config.track.to:
        run.tracker.log(k, iteration_figures(run, k))
        if found := record(run.store.iteration(k) / names.CHECKPOINT, Checkpoint):
            run.tracker.describe({f"checkpoint {k}": _lineage(run, k, found)})


def iteration_figures(run: Run, k: int) -> dict[str, float]:
    """Pool, training, drift, gate, episodes and time of iteration `k`, by names such as "pool/items"."""
    folder = run.store.iteration(k)
    edits = Counter(edit.op for edit in read_edits(folder / names.EDITS))
    found = {"pool/items": float(len(run.pool(k).items))}
    found |= {f"pool/{op.lower()}": float(edits[op]) for op in ("ADD", "UPDATE", "DELETE")}
    found |= _numbers("training", record(folder / names.TRAINING, TrainSummary))
    found |= _numbers("drift", record(folder / names.DRIFT, Drift))
    if decision := record(folder / names.GATE, Decision):
        found["gate/kept"] = float(decision.promote)
    return found | _episodes(run, k) | _time(mark for mark in read_marks(run.store.path) if mark.stage.iteration == k)


def _numbers(name: str, found: Record | None) -> dict[str, float]:
    """The numbers of a record by name, without those that are None."""
    values = found.model_dump(exclude={"iteration"}) if found else {}
    return {f"{name}/{key}": float(value) for key, value in values.items() if isinstance(value, int | float)}


def _episodes(run: Run, k: int) -> dict[str, float]:
    """The number of episodes played for learning, and of tokens sampled in them."""
    folder = run.store.iteration(k)
    files = [folder / names.episodes(stage) for stage in names.learning(folder, k)]
    sampled = [sum(len(step.token_ids) for step in one.steps) for file in files for one in records(file, Trajectory)]
    return {"cost/episodes": float(len(sampled)), "cost/sampled tokens": float(sum(sampled))}


def _time(marks: Iterable[StageMark]) -> dict[str, float]:
    """Seconds by kind of stage, and the peak of memory in bytes."""
    found: Counter[str] = Counter()
    memory = 0
    for mark in marks:
        found[f"seconds/{mark.stage.kind}"] += mark.seconds  # type: ignore[assignment] # a Counter adds floats too
        memory = max(memory, mark.memory)
    return {**{name: float(value) for name, value in found.items()}, "cost/peak memory": float(memory)}


def _lineage(run: Run, k: int, found: Checkpoint) -> str:
    decision = record(run.store.iteration(k) / names.GATE, Decision)
    kept = "" if decision is None else ", kept" if decision.promote else ", rolled back"
    return f"{found.id} from {found.parent}, pool {found.pool_version}{kept}"


def _flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The values of nested sections by dotted names."""
    found: dict[str, str] = {}
    for key, value in section.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return found
