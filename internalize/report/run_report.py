"""A run directory read into one frozen `RunReport`: what every kind of report is made from.

Reads only and takes no lock, so a run can be looked at while it works. Every file but run.json may be missing. An
iteration counts only once it has its line in metrics.jsonl (without that file, once it has results without experience).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.diagnostics import Diagnostics, measured
from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import (
    Group,
    SuiteMetrics,
    by_task,
    gathered,
    group_of,
    in_context_before,
    own_line,
    select,
)
from internalize.evaluation.signs import Caution, Observed, Thresholds, cautions
from internalize.experience.redact import Redactions
from internalize.records import Drift, EvalResult, Experience, Mode, Record, TrainSummary
from internalize.runs import names
from internalize.runs.readers import record, records
from internalize.runs.store import RunInfo, read_marks, read_run

from .episodes import Played, Sampled, played
from .samples import Entry, Sample, pick
from .spent import Spent, spent


class _Loose(BaseModel):
    """A file of which a report needs some fields only."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _PoolItems(_Loose):
    items: tuple[Experience, ...] = ()


class IterationReport(Observed):
    """One iteration: the policy after `number` updates on the main suite, and what the iteration made."""

    milder: TrainSummary | None = Field(None, description="Of a second candidate that was trained anew.")
    measured_tokens: int = Field(0, description="Of evaluation episodes, also those of rejected candidates.")
    sampled: tuple[Sampled, ...] = ()
    spent: Spent | None = None
    decision: Decision | None = None
    redactions: Redactions = Redactions()
    cautions: tuple[Caution, ...] = ()


class RunReport(Record):
    """A whole run. `iterations` holds the finished ones in order, 0 = the starter if it was measured."""

    path: Path
    info: RunInfo
    suite: str = Field(description="The suite measured at every iteration.")
    planned: int
    iterations: tuple[IterationReport, ...]
    metrics: tuple[SuiteMetrics, ...]
    results: tuple[EvalResult, ...]
    samples: tuple[Sample, ...]
    entities: frozenset[str] = Field(frozenset(), description="Names that belong to single tasks.")

    @property
    def resamples(self) -> int:
        """Bootstrap resamples the run was configured with."""
        return _setting(self.info, "evaluate", "resamples", 2000)

    @property
    def kept(self) -> tuple[IterationReport, ...]:
        """The starter and the iterations that the gate did not roll back."""
        return tuple(i for i in self.iterations if i.decision is None or i.decision.promote)

    @property
    def gated(self) -> bool:
        """Whether a gate chose between checkpoints by the main suite."""
        gate = self.info.config.get("gate")
        return isinstance(gate, dict) and gate.get("rule", "always") != "always"

    @property
    def finished(self) -> int:
        """Iterations that have trained and been measured."""
        return sum(iteration.number > 0 for iteration in self.iterations)

    @property
    def starter(self) -> IterationReport | None:
        """The policy before any update."""
        return next((i for i in self.iterations if i.number == 0), None)

    @property
    def final(self) -> IterationReport | None:
        """The last trained policy that the gate kept; None if there is none."""
        return next((i for i in reversed(self.kept) if i.number > 0), None)

    @property
    def further(self) -> tuple[str, ...]:
        """Names of the suites measured at every iteration beside the main one."""
        section = self.info.config.get("evaluate")
        held = section.get("further") if isinstance(section, dict) else None
        return tuple(held) if isinstance(held, dict) else ()

    @property
    def mode(self) -> Mode:
        """Where the run keeps what it learns: in its weights, or, if it trains nothing, in its prompt."""
        inject = self.info.config.get("inject")
        shown = isinstance(inject, dict) and inject.get("pattern") != "none"
        return "in_context" if shown and _setting(self.info, "distill", "epochs", 1) == 0 else "internalized"

    def scores(self, iteration: int, mode: Mode = "internalized") -> dict[str, float | None]:
        """Success of each task of the main suite after `iteration` updates, on its own checkpoint and pool."""
        line = self.line(self.suite, mode, iteration)
        found = select(self.results, suite=self.suite, mode=mode, iteration=iteration)
        own = line and (line.checkpoint, line.pool_version)
        return by_task(r for r in found if own is None or (r.checkpoint, r.pool_version) == own)

    def before(self, iteration: int) -> SuiteMetrics | None:
        """The main suite with the pool of `iteration`, on the policy that was then trained with it."""
        found = in_context_before(self.results, self.suite, iteration)
        wanted = [(self.suite, "in_context", r.iteration, r.pool_version) for r in found[:1]]
        return next((m for m in self.metrics if (m.suite, m.mode, m.iteration, m.pool_version) in wanted), None)

    def kept_at(self, iteration: int) -> int:
        """The iteration whose policy the gate had in force after `iteration`; 0 = the starter."""
        return max((i.number for i in self.kept if i.number <= iteration), default=0)

    def line(self, suite: str, mode: Mode, iteration: int) -> SuiteMetrics | None:
        """Metrics of one suite and mode after `iteration` updates, on that iteration's own checkpoint."""
        return own_line(self.metrics, suite, mode, iteration)


def load(run_dir: Path, limits: Thresholds = Thresholds()) -> RunReport:  # noqa: B008 - frozen
    """Read a run; `limits` say when a sign is a caution.

    Raises UserError if there is no run.json, DataError naming file and line of a broken record.
    """
    info = read_run(run_dir)
    folders = names.iterations(run_dir, _planned(info))
    lines = tuple(records(run_dir / names.METRICS, SuiteMetrics))
    results = gathered(list(records(folder / names.EVALUATIONS, EvalResult)) for folder in folders.values())
    done = {line.iteration for line in lines} or {r.iteration for r in results if r.mode == "internalized"}
    results = tuple(result for result in results if result.iteration in done)
    found = _diagnostics(info, folders, results)
    computed = {(one.metrics.iteration, one.metrics.suite, one.metrics.mode) for one in found}
    others = {key: line for line in lines if (key := (line.iteration, line.suite, line.mode)) not in computed}
    metrics = (*(one.metrics for one in found), *others.values())
    files = played(folders, _suites(info))
    report = RunReport(
        path=run_dir,
        info=info,
        suite=_main_suite(info, metrics),
        planned=_planned(info),
        iterations=(),
        metrics=metrics,
        results=results,
        samples=pick(files.entries, {result.checkpoint: result.iteration for result in reversed(results)}),
        entities=files.entities,
    )
    times = spent(read_marks(run_dir))
    behaviour = {group_of(one.metrics): one.behaviour for one in found}
    for k in sorted(done):
        iteration = _iteration(report, k, folders.get(k), files, behaviour)
        now = cautions(report.iterations, iteration, report.entities, limits)
        iteration = iteration.model_copy(update={"spent": times.get(k), "cautions": now})
        report = report.model_copy(update={"iterations": (*report.iterations, iteration)})
    return report


def episodes(run_dir: Path) -> tuple[Entry, ...]:
    """Where every whole episode of a run lies. Raises UserError if there is no run."""
    info = read_run(run_dir)
    return played(names.iterations(run_dir, _planned(info)), _suites(info)).entries


def _iteration(
    report: RunReport, k: int, folder: Path | None, found: Played, behaviour: Mapping[Group, Behaviour | None]
) -> IterationReport:
    own = {mode: line for mode in names.MODES if (line := report.line(report.suite, mode, k))}
    further = (report.line(suite, "internalized", k) for suite in report.further)
    counted = {mode: behaviour.get(group_of(line)) or found.behaviour(line) for mode, line in own.items()}
    iteration = IterationReport(
        number=k,
        internalized=own.get("internalized"),
        in_context=own.get("in_context"),
        further=tuple(line for line in further if line),
        behaviour={mode: value for mode, value in counted.items() if value.episodes},
        sampled=found.costs.get(k, ()),
        measured_tokens=found.measuring.get(k, 0),
    )
    if folder is None:
        return iteration
    pool = record(folder / names.POOL, _PoolItems)
    read = {
        "pool": pool.items if pool else None,
        "training": record(folder / names.TRAINING, TrainSummary),
        "milder": record(folder / names.SECOND_TRAINING, TrainSummary),
        "decision": record(folder / names.GATE, Decision),
        "drift": record(folder / names.DRIFT, Drift),
        "redactions": record(folder / names.REDACTIONS, Redactions) or Redactions(),
    }
    return iteration.model_copy(update=read)


def _diagnostics(info: RunInfo, folders: Mapping[int, Path], results: Sequence[EvalResult]) -> tuple[Diagnostics, ...]:
    """Those that the run wrote; what version 1 did not write is computed."""
    known = [one for folder in folders.values() for one in records(folder / names.DIAGNOSTICS, Diagnostics)]
    return measured(results, known, _setting(info, "evaluate", "resamples", 2000), info.seed)


def _main_suite(info: RunInfo, metrics: Sequence[SuiteMetrics]) -> str:
    section = info.config.get("evaluate")
    split = section.get("split") if isinstance(section, dict) else None
    suites = [line.suite for line in metrics]
    if isinstance(split, str) and (split in suites or not suites):
        return split
    return suites[0] if suites else "dev"


def _setting(info: RunInfo, section: str, name: str, default: int) -> int:
    """A number of the stored config; reports also read runs of versions that had no such field."""
    fields = info.config.get(section, {}) if section else info.config
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if isinstance(value, int) else default


def _planned(info: RunInfo) -> int:
    return _setting(info, "", "iterations", 0)


def _suites(info: RunInfo) -> tuple[str, ...]:
    """Names of every suite the run measures at any time."""
    section = info.config.get("evaluate")
    fields = section if isinstance(section, dict) else {}
    found = [fields.get("split", "dev"), *_listed(fields.get("final_splits")), *_listed(fields.get("further"))]
    return tuple(dict.fromkeys(str(name) for name in found))


def _listed(value: JsonValue) -> list[JsonValue]:
    return list(value) if isinstance(value, list | dict) else []


def training_of(weights: Path) -> TrainSummary | None:
    """What stands beside weights that `internalize distill` made; None for others."""
    return record(weights / names.TRAINING, TrainSummary)
