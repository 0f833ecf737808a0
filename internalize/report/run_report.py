"""Reads a run directory into one frozen `RunReport`, from which every kind of report is made.

Takes no lock and writes nothing, so a running run can be read. Every file but run.json may be missing. An iteration
counts only once it has its line in metrics.jsonl (without that file, once it has results without experience), or, if it
is not to be measured, the decision of the gate.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import AliasPath, BaseModel, ConfigDict, Field

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
from internalize.evaluation.pool_health import PoolHealth, pool_health
from internalize.evaluation.signs import Caution, Observed, Thresholds, cautions
from internalize.experience.redact import Redactions
from internalize.records import Drift, EvalResult, Experience, Mode, Record, TrainSummary
from internalize.runs import names
from internalize.runs.marks import read_marks, require_sound
from internalize.runs.readers import record, records
from internalize.runs.store import RunInfo, read_run

from .costs import Costs
from .episodes import Entry, EpisodeFiles, Sample, pick, read_episodes


class _Loose(BaseModel):
    """A file of which a report needs only some fields; older versions without them are read too."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Settings(_Loose):
    """The part of a run's config that reports need."""

    iterations: int = 0
    suite: str = Field("dev", validation_alias=AliasPath("evaluate", "split"))
    final: tuple[str, ...] = Field((), validation_alias=AliasPath("evaluate", "final_splits"))
    further: dict[str, object] = Field(default_factory=dict, validation_alias=AliasPath("evaluate", "further"))
    at: tuple[int, ...] = Field((), validation_alias=AliasPath("evaluate", "at"))
    tasks: int = Field(48, validation_alias=AliasPath("evaluate", "tasks"))
    confirmed: int = Field(0, validation_alias=AliasPath("gate", "most"))
    resamples: int = Field(2000, validation_alias=AliasPath("evaluate", "resamples"))
    gate: str = Field("always", validation_alias=AliasPath("gate", "rule"))
    pattern: str = Field("none", validation_alias=AliasPath("inject", "pattern"))
    epochs: int = Field(1, validation_alias=AliasPath("distill", "epochs"))

    @property
    def suites(self) -> tuple[str, ...]:
        """Names of every suite the run measures at any time."""
        again = names.again(self.suite, self.tasks, self.confirmed) if self.gate == "confirm" else ()
        return (self.suite, *self.final, *self.further, *again)


class _PoolItems(_Loose):
    items: tuple[Experience, ...] = ()


class IterationReport(Observed):
    """One iteration: the policy after `number` updates on the main suite, and what the iteration made."""

    pool: tuple[Experience, ...] | None = None
    training: TrainSummary | None = None
    drift: Drift | None = None
    milder: TrainSummary | None = Field(None, description="Of a second candidate that was trained anew.")
    costs: Costs = Costs()
    decision: Decision | None = None
    redactions: Redactions = Redactions()
    cautions: tuple[Caution, ...] = ()

    @property
    def undone(self) -> bool:
        """Whether the gate went back to an earlier policy."""
        return self.decision is not None and not self.decision.promote

    @property
    def name(self) -> str:
        """What tables call the policy after it."""
        return "starter" if self.number == 0 else f"{self.number}{' undone' if self.undone else ''}"


class Change(NamedTuple):
    """The changes of the pool in one iteration, and the health of its texts afterwards."""

    number: int
    added: tuple[Experience, ...]
    removed: tuple[Experience, ...]
    health: PoolHealth


class RunReport(Record):
    """A whole run. `iterations` holds the finished ones in order, 0 = the starter if it was measured."""

    path: Path
    info: RunInfo
    suite: str = Field(description="The suite measured at every iteration.")
    iterations: tuple[IterationReport, ...] = ()
    metrics: tuple[SuiteMetrics, ...]
    results: tuple[EvalResult, ...]
    samples: tuple[Sample, ...]
    entities: frozenset[str] = Field(frozenset(), description="Names that belong to single tasks.")

    @property
    def settings(self) -> Settings:
        """The relevant part of the run's config."""
        return Settings.model_validate(self.info.config)

    @property
    def planned(self) -> int:
        """Iterations that the run is to have."""
        return self.settings.iterations

    @property
    def gated(self) -> bool:
        """Whether a gate chose between checkpoints by the main suite."""
        return self.settings.gate != "always"

    @property
    def finished(self) -> int:
        """Iterations that have trained and, if they are to be, been measured."""
        return sum(iteration.number > 0 for iteration in self.iterations)

    @property
    def last_measured(self) -> int:
        """The last iteration that was measured; 0 = none after the starter."""
        return max((i.number for i in self.iterations if i.internalized), default=0)

    @property
    def kept(self) -> tuple[IterationReport, ...]:
        """The starter and the iterations that the gate did not roll back."""
        return tuple(i for i in self.iterations if not i.undone)

    @property
    def starter(self) -> IterationReport | None:
        """The policy before any update."""
        return next((i for i in self.iterations if i.number == 0), None)

    @property
    def final(self) -> IterationReport | None:
        """The last measured policy that the gate kept; None if there is none."""
        return next((i for i in reversed(self.kept) if i.number > 0 and i.internalized), None)

    @property
    def mode(self) -> Mode:
        """Where the run keeps what it learns: in its weights or, if it trains nothing, in its prompt."""
        shown = self.settings.pattern != "none"
        return "in_context" if shown and self.settings.epochs == 0 else "internalized"

    def scores(self, iteration: int, mode: Mode = "internalized", suite: str = "") -> dict[str, float | None]:
        """Success of each task of a suite ('' = the main one) after `iteration` updates, on its weights and pool."""
        line = self.line(suite or self.suite, mode, iteration)
        found = select(self.results, suite=suite or self.suite, mode=mode, iteration=iteration)
        own = line and (line.checkpoint, line.pool_version)
        return by_task(r for r in found if own is None or (r.checkpoint, r.pool_version) == own)

    def before(self, iteration: int) -> SuiteMetrics | None:
        """The main suite with the pool of `iteration`, on the policy before training on that pool."""
        found = in_context_before(self.results, self.suite, iteration)
        wanted = [(self.suite, "in_context", r.iteration, r.pool_version) for r in found[:1]]
        return next((m for m in self.metrics if (m.suite, m.mode, m.iteration, m.pool_version) in wanted), None)

    def kept_at(self, iteration: int) -> int:
        """The iteration whose policy was in force after the gate of `iteration`; 0 = the starter."""
        return max((i.number for i in self.kept if i.number <= iteration), default=0)

    def line(self, suite: str, mode: Mode, iteration: int) -> SuiteMetrics | None:
        """Metrics of one suite and mode after `iteration` updates, on that iteration's own checkpoint."""
        return own_line(self.metrics, suite, mode, iteration)


def load(run_dir: Path, limits: Thresholds = Thresholds()) -> RunReport:  # noqa: B008 - frozen
    """Read a run; `limits` are the thresholds of the signs.

    Raises UserError if there is no run.json, DataError naming file and line of a broken record, or a file that its
    stage did not write so.
    """
    info = read_run(run_dir)
    require_sound(run_dir, weights=False)
    settings = Settings.model_validate(info.config)
    folders = names.iterations(run_dir, settings.iterations)
    lines = tuple(records(run_dir / names.METRICS, SuiteMetrics))
    results = gathered(list(records(folder / names.EVALUATIONS, EvalResult)) for folder in folders.values())
    done = {line.iteration for line in lines} or {r.iteration for r in results if r.mode == "internalized"}
    results = tuple(result for result in results if result.iteration in done)
    if settings.at:
        done |= {k for k, folder in folders.items() if k not in settings.at and (folder / names.GATE).exists()}
    known = [one for folder in folders.values() for one in records(folder / names.DIAGNOSTICS, Diagnostics)]
    found = measured(results, known, settings.resamples, info.seed)  # version 1 did not write them
    computed = {(one.metrics.iteration, one.metrics.suite, one.metrics.mode) for one in found}
    others = {key: line for line in lines if (key := (line.iteration, line.suite, line.mode)) not in computed}
    metrics = (*(one.metrics for one in found), *others.values())
    suites = [line.suite for line in metrics]
    files = read_episodes(folders, settings.suites)
    report = RunReport(
        path=run_dir,
        info=info,
        suite=settings.suite if settings.suite in suites or not suites else suites[0],
        metrics=metrics,
        results=results,
        samples=pick(files.entries, {result.checkpoint: result.iteration for result in reversed(results)}),
        entities=files.names.of_tasks(),
    )
    behaviour = {group_of(one.metrics): one.behaviour for one in found}
    marks = read_marks(run_dir)
    for k in sorted(done):
        noted = [Costs.noted(mark) for mark in marks if mark.stage.iteration == k and (mark.seconds or mark.memory)]
        iteration = _iteration(report, k, folders.get(k), files, behaviour, noted)
        now = cautions(report.iterations, iteration, limits)
        iteration = iteration.model_copy(update={"cautions": now})
        report = report.model_copy(update={"iterations": (*report.iterations, iteration)})
    return report


def episodes(run_dir: Path) -> list[Entry]:
    """The places of all complete episodes of a run. Raises UserError if there is no run."""
    settings = Settings.model_validate(read_run(run_dir).config)
    return read_episodes(names.iterations(run_dir, settings.iterations), settings.suites).entries


def _iteration(
    report: RunReport,
    k: int,
    folder: Path | None,
    files: EpisodeFiles,
    behaviour: Mapping[Group, Behaviour | None],
    noted: Sequence[Costs],
) -> IterationReport:
    own = {mode: line for mode in names.MODES if (line := report.line(report.suite, mode, k))}
    further = (report.line(suite, "internalized", k) for suite in report.settings.further)
    counted = {mode: behaviour.get(group_of(line)) or files.behaviour(line) for mode, line in own.items()}
    iteration = IterationReport(
        number=k,
        internalized=own.get("internalized"),
        in_context=own.get("in_context"),
        further=tuple(line for line in further if line),
        behaviour={mode: value for mode, value in counted.items() if value.episodes},
    )
    if folder is None:
        return iteration
    pool = record(folder / names.POOL, _PoolItems)
    training = record(folder / names.TRAINING, TrainSummary)
    milder = record(folder / names.SECOND_TRAINING, TrainSummary)
    trained = Costs(trained=sum(one.action_tokens for one in (training, milder) if one))
    held = record(folder / names.COSTS, Costs)
    read = {
        "pool": pool.items if pool else None,
        "training": training,
        "milder": milder,
        "costs": held or Costs.total([files.costs[k], trained, *noted]),
        "decision": record(folder / names.GATE, Decision),
        "drift": record(folder / names.DRIFT, Drift),
        "redactions": record(folder / names.REDACTIONS, Redactions) or Redactions(),
    }
    return iteration.model_copy(update=read)


def changes(iterations: Sequence[IterationReport], entities: Collection[str] = ()) -> list[Change]:
    """Added and removed items of each iteration; `entities` are names that belong to single tasks."""
    found, before = [], dict[str, Experience]()
    for iteration in iterations:
        if iteration.pool is not None:
            now = {item.id: item for item in iteration.pool}
            added = tuple(item for key, item in now.items() if key not in before)
            removed = tuple(item for key, item in before.items() if key not in now)
            found.append(Change(iteration.number, added, removed, pool_health(iteration.pool, entities)))
            before = now
    return found


def training_of(weights: Path) -> TrainSummary | None:
    """The training summary beside weights of `internalize distill`; None for other weights."""
    return record(weights / names.TRAINING, TrainSummary)
