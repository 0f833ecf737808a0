"""A run directory as records, for notebooks and scripts: finished, stopped or still working."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from internalize.config.schema import Config
from internalize.errors import DataError
from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics
from internalize.experience.pool import ExperiencePool, load_pool
from internalize.records import Checkpoint, EvalResult, PoolEdit, StageKind, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.readers import record, records
from internalize.runs.store import RunInfo, read_run


class RecordedRun:
    """The records that a run has written so far, read anew at every call. No lock is taken and nothing is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.info: RunInfo = read_run(path)

    @cached_property
    def config(self) -> Config:
        """The recipe of the run."""
        return Config.model_validate(self.info.config)

    @property
    def iterations(self) -> tuple[int, ...]:
        """The iterations that have begun; 0 is the starter, which is only measured."""
        return tuple(names.iterations(self.path, self.config.iterations))

    @property
    def metrics(self) -> tuple[SuiteMetrics, ...]:
        """One line for each suite, mode, checkpoint and pool that was measured."""
        return tuple(records(self.path / names.METRICS, SuiteMetrics))

    def pool(self, k: int) -> ExperiencePool | None:
        """The pool after iteration `k`; None if it is not extracted yet."""
        path = self._folder(k) / names.POOL
        return load_pool(path) if path.exists() else None

    def edits(self, k: int) -> tuple[PoolEdit, ...]:
        """The changes of the pool in iteration `k`, with reasons."""
        return tuple(records(self._folder(k) / names.EDITS, PoolEdit))

    def training(self, k: int) -> TrainSummary | None:
        """The summary of the training of iteration `k`; None if there is none yet."""
        return record(self._folder(k) / names.TRAINING, TrainSummary)

    def decision(self, k: int) -> Decision | None:
        """The gate's decision on the checkpoint of iteration `k`; None if there is none yet."""
        return record(self._folder(k) / names.GATE, Decision)

    def checkpoint(self, k: int) -> Checkpoint | None:
        """The checkpoint trained in iteration `k`; its weights are in `checkpoint.folder(run.path)`."""
        return record(self._folder(k) / names.CHECKPOINT, Checkpoint)

    def results(self, k: int) -> tuple[EvalResult, ...]:
        """Every evaluation result of iteration `k`, one record for each task and attempt."""
        return tuple(records(self._folder(k) / names.EVALUATIONS, EvalResult))

    def trajectories(self, k: int, kind: StageKind | None = None) -> tuple[Trajectory, ...]:
        """The episodes of iteration `k` of one kind: "rollout", "collect" or "episodes" (evaluations); None = all."""
        folder, settings = self._folder(k), self.config.evaluate
        gate = self.config.gate
        again = names.again(settings.split, settings.tasks, gate.most) if gate.rule == "confirm" else ()
        suites = (settings.split, *settings.further, *settings.final_splits, *again)
        stages = (*names.learning(folder, k), *names.measuring(folder, k, suites))
        files = [folder / names.episodes(stage) for stage in stages if kind in {None, stage.kind}]
        return tuple(trajectory for file in files for trajectory in records(file, Trajectory))

    def _folder(self, k: int) -> Path:
        folder = self.path / names.iteration(k)
        if not folder.is_dir():
            raise DataError(f"{self.path}: has no iteration {k} (there are {', '.join(map(str, self.iterations))})")
        return folder


def open_run(path: Path | str) -> RecordedRun:
    """Read the run in a directory. Raises UserError if there is none."""
    return RecordedRun(Path(path))
