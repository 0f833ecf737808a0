"""A run directory read into one frozen `RunReport`: what every kind of report is made from.

Reads only, takes no lock, so a run can be looked at while it works; of a file that is being written, a
torn last line is ignored. Every file but run.json may be missing. Metrics are computed again from
the evaluations where these exist, so that a report never mixes old numbers with new results. What must
not change: an iteration counts only once it has its line in metrics.jsonl (without that file, once it
has results without experience).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from internalize.evaluation.behaviour import Habits
from internalize.evaluation.diagnostics import (
    Caution,
    Thresholds,
    drift_cautions,
    filter_cautions,
    habit_cautions,
    pool_cautions,
    suite_cautions,
    weight_cautions,
)
from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import (
    SuiteMetrics,
    by_task,
    gathered,
    in_context_before,
    iteration_metrics,
    select,
)
from internalize.experience.redact import Redactions
from internalize.records import EvalResult, Experience, Mode, Record, TrainSummary
from internalize.runs import names
from internalize.runs.store import RunInfo, read_marks, read_run

from .episodes import Key, Played, Sampled, played
from .readers import record, records
from .samples import Entry, Sample, pick
from .spent import Spent, spent


class _Loose(BaseModel):
    """A file of which a report needs some fields only."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Drift(_Loose):
    """drift.json: how far the policy has moved from the starter, in nats a token."""

    entropy: float | None = None
    kl_to_base: float | None = None
    held_out_nll: float | None = None


class _PoolItems(_Loose):
    items: tuple[Experience, ...] = ()


class IterationReport(Record):
    """One iteration: the policy after `number` updates on the main suite, and what the iteration made."""

    number: int
    internalized: SuiteMetrics | None = None
    in_context: SuiteMetrics | None = None
    pool: tuple[Experience, ...] | None = None
    training: TrainSummary | None = None
    milder: TrainSummary | None = Field(None, description="Of a second candidate that was trained anew.")
    measured_tokens: int = Field(0, description="Of evaluation episodes, also those of rejected candidates.")
    drift: Drift | None = None
    habits: dict[Mode, Habits] = Field(default_factory=dict, description="Of the main suite's episodes, by mode.")
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
        lines = [m for m in self.metrics if (m.suite, m.iteration) == (suite, iteration)]
        own = {m.checkpoint for m in lines if m.mode == "internalized"}
        return next((m for m in lines if m.mode == mode and (m.checkpoint in own or not own)), None)


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
    metrics = _metrics(results, lines, info)
    found = played(folders, _suites(info))
    report = RunReport(
        path=run_dir,
        info=info,
        suite=_main_suite(info, metrics),
        planned=_planned(info),
        iterations=(),
        metrics=metrics,
        results=results,
        samples=pick(found.entries, {result.checkpoint: result.iteration for result in reversed(results)}),
        entities=found.entities,
    )
    times = spent(read_marks(run_dir))
    for k in sorted(done):
        iteration = _iteration(report, k, folders.get(k), found).model_copy(update={"spent": times.get(k)})
        iteration = iteration.model_copy(update={"cautions": _cautions(report, iteration, limits)})
        report = report.model_copy(update={"iterations": (*report.iterations, iteration)})
    return report


def episodes(run_dir: Path) -> tuple[Entry, ...]:
    """Where every whole episode of a run lies. Raises UserError if there is no run."""
    info = read_run(run_dir)
    return played(names.iterations(run_dir, _planned(info)), _suites(info)).entries


def _iteration(report: RunReport, k: int, folder: Path | None, found: Played) -> IterationReport:
    plain, with_pool = report.line(report.suite, "internalized", k), report.line(report.suite, "in_context", k)
    lines = [line for line in (plain, with_pool) if line]
    keys: dict[Mode, Key] = {line.mode: (k, line.checkpoint, line.suite, line.pool_version) for line in lines}
    iteration = IterationReport(
        number=k,
        internalized=plain,
        in_context=with_pool,
        habits={mode: found.habits[key] for mode, key in keys.items() if key in found.habits},
        sampled=found.costs.get(k, ()),
        measured_tokens=found.measuring.get(k, 0),
    )
    if folder is not None:
        pool = record(folder / names.POOL, _PoolItems)
        training = record(folder / names.TRAINING, TrainSummary)
        decision = record(folder / names.GATE, Decision)
        drift = record(folder / names.DRIFT, Drift)
        milder = record(folder / names.SECOND_TRAINING, TrainSummary)
        held = {
            "milder": milder,
            "pool": pool.items if pool else None,
            "training": training,
            "decision": decision,
            "drift": drift,
        }
        removed = record(folder / names.REDACTIONS, Redactions) or Redactions()
        iteration = iteration.model_copy(update={**held, "redactions": removed})
    return iteration


def _cautions(report: RunReport, now: IterationReport, limits: Thresholds) -> tuple[Caution, ...]:
    """What an iteration shows, compared with the iterations before it, which `report` holds."""
    cautions = list(pool_cautions(now.pool or (), now.number, report.entities, limits))
    if now.training is not None and now.training.rejected is not None:
        shares = [s for i in report.iterations if i.training and (s := i.training.accepted_share) is not None]
        best = max(shares, default=None)
        cautions += filter_cautions(now.training.accepted, now.training.rejected, now.number, limits, best)
    if report.starter and report.starter.drift and now.drift and now.number:
        cautions += weight_cautions(report.starter.drift, now.drift, now.number, limits)
    for line in (now.internalized, now.in_context):
        if line is not None and now.number > 0:
            cautions += _line_cautions(report, now, line, limits)
    for suite in report.further if now.number else ():
        further = report.line(suite, "internalized", now.number)
        cautions += suite_cautions(further) if further else ()
    return tuple(cautions)


def _line_cautions(report: RunReport, now: IterationReport, line: SuiteMetrics, limits: Thresholds) -> list[Caution]:
    # Without a starter to compare with, a line is its own: only its gains are judged.
    starter = report.line(line.suite, line.mode, 0) or line
    found = list(drift_cautions(starter, line, limits, last=report.line(line.suite, line.mode, now.number - 1)))
    habits = [i.habits[line.mode] for i in report.iterations if line.mode in i.habits]
    if line.mode in now.habits:
        widest = max((h.spread for h in habits if h.spread is not None), default=None)
        found += habit_cautions(habits[0] if habits else Habits(), now.habits[line.mode], line, limits, widest)
    return found


def _metrics(results: Sequence[EvalResult], lines: Sequence[SuiteMetrics], info: RunInfo) -> tuple[SuiteMetrics, ...]:
    resamples = _setting(info, "evaluate", "resamples", 2000)
    made: list[SuiteMetrics] = []
    for k in sorted({result.iteration for result in results}):
        now = [result for result in results if result.iteration == k]
        earlier = [result for result in results if result.iteration < k]
        made += iteration_metrics(now, earlier, resamples, info.seed)
    known = {(line.iteration, line.suite, line.mode) for line in made}
    kept = {(line.iteration, line.suite, line.mode): line for line in lines}
    return (*made, *(line for key, line in kept.items() if key not in known))


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
