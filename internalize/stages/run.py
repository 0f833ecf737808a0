"""The stages of an iteration over one run directory: each takes and returns records, and is skipped if already done.

A stage is marked done only when its files are on disk. A policy is passed around as its `Checkpoint`; the code that
plays episodes and changes weights is behind the Protocols of `interfaces.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from pydantic import BaseModel

from internalize.config.schema import Config
from internalize.config.specs import RolloutSpec
from internalize.environments import registry
from internalize.errors import InternalizeError
from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.diagnostics import Diagnostics
from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics, eval_result, figures, gathered, group_of
from internalize.experience.extract.session import ExtractionInput
from internalize.experience.extract.writer import extract, writer_of
from internalize.experience.pool import ExperiencePool, empty, load_pool, read_edits, save_pool
from internalize.experience.redact import without_secrets
from internalize.experience.utility import retire, retired_ids, utilities, without_retired
from internalize.interfaces import PolicyLoader, Renderer, RolloutBackend, Tracker, TrainBackend
from internalize.records import (
    Candidate,
    Checkpoint,
    DistillExample,
    EvalResult,
    Mode,
    PoolEdit,
    SelfCheck,
    Stage,
    Task,
    Trajectory,
)
from internalize.rollout.episode import Label, episode_id
from internalize.rollout.local import injector_of, jobs_of
from internalize.rollout.record import record
from internalize.runs import names
from internalize.runs.progress import Report
from internalize.runs.readers import required
from internalize.runs.store import RunStore, read_jsonl, write_jsonl
from internalize.training.examples import conversations, weighted

from .diagnose import Diagnosis
from .plan import TaskPlan
from .refresh import build_examples, in_turn, rounds


def silent(stage: str, done: int, total: int) -> None:
    """A report that shows no progress."""


@dataclass(frozen=True)
class Backends:
    """The machinery of a run: who plays episodes, who trains, who loads checkpoints, and how text becomes ids."""

    rollouts: RolloutBackend
    trainer: TrainBackend
    policies: PolicyLoader
    renderer: Renderer | None  # None: no examples can be made
    starter: Checkpoint
    self_check: SelfCheck | None = None  # None: no model in this process
    close: Callable[[], None] = lambda: None  # ends processes that the backends have started


@dataclass
class Run:
    """One run: its directory, its backends, its tasks."""

    config: Config
    store: RunStore
    backends: Backends
    plan: TaskPlan
    report: Report = silent
    tracker: Tracker | None = None
    rejected: int = 0  # episodes that the last `collect` did not keep
    tracked: dict[int, dict[str, float]] = field(default_factory=dict)  # metrics sent to the tracker, by iteration

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Diagnostics and warning signs of the measurements."""
        return Diagnosis(self.store.path, self.config, self.plan.suites)

    # -- the stages, in the order of the loop ---------------------------------------------------------------------

    async def rollout(self, policy: Checkpoint, k: int) -> list[Trajectory]:
        """Episodes of the policy without experience, for extraction."""
        return await self._play(*self._rollouts(policy, k))

    def _rollouts(self, policy: Checkpoint, k: int) -> tuple[Stage, RolloutSpec, list[Task]]:
        config, stage = self.config.rollout, Stage(iteration=k, kind="rollout")
        spec = self._spec(stage, policy, k - 1, config.attempts)
        return stage, spec, self.plan.draw(self.config, k, 0, config.tasks)

    @asynccontextmanager
    async def ahead(self, policy: Checkpoint, k: int) -> AsyncIterator[None]:
        """Play rollouts of iteration `k` while the body runs, if `compute.overlap` is set and no batch matters.

        Episodes that have not ended with the body are left to `rollout`, which drops these episodes if the gate rejects
        the policy.
        """
        compute, stage = self.config.compute, Stage(iteration=k, kind="rollout")
        wanted = compute.overlap and compute.rollout == "local" and k <= self.config.iterations
        if not wanted or self.store.done(stage):
            yield
            return
        loaded = await self.backends.policies.load(policy, self.store.path)
        if not loaded.agent.independent:
            yield
            return
        begun = asyncio.create_task(self._record(*self._rollouts(policy, k), silent))
        try:
            yield
        finally:
            begun.cancel()
            with suppress(asyncio.CancelledError, InternalizeError):  # `rollout` meets the failure again and reports it
                await begun

    async def extract(self, policy: Checkpoint, trajectories: Sequence[Trajectory], k: int) -> ExperiencePool:
        """The pool of the iteration before, edited by what these and recent trajectories teach."""
        folder, stage = self.store.iteration(k), Stage(iteration=k, kind="extract")
        if not self.store.done(stage):
            before = self.pool(k - 1)
            earlier = self._episodes(range(max(1, k - self.config.extract.window + 1), k))
            harmful, barred = self._retired(k, before)
            cues = registry.cues(self.config.env.name)
            seen = ExtractionInput(trajectories, earlier, before.apply(harmful), k, barred, policy.id, cues)
            title = f"iteration {k}: extract"
            loaded = await self.backends.policies.load(policy, self.store.path)
            found = await extract(
                self.config,
                seen,
                folder,
                lambda: loaded.chat(writer_of(self.config)),
                lambda done, total: self.report(title, done, total),
            )
            edits = (*harmful, *without_retired(found, barred))
            write_jsonl(folder / names.EDITS, edits)
            save_pool(before.apply(edits), folder / names.POOL)
            self.store.mark(stage, *(folder / name for name in names.OF_EXTRACT))
        return self.pool(k)

    def _retired(self, k: int, before: ExperiencePool) -> tuple[tuple[PoolEdit, ...], frozenset[str]]:
        """DELETEs of items that harmed in recent training episodes, and the ids of all items ever retired."""
        settings = self.config.extract
        if not settings.retire:
            return (), frozenset()
        folders = [self.store.iteration(n) for n in range(1, k)]
        episodes = self._episodes(range(max(1, k - settings.window), k))
        cues, seed = registry.vocabulary(self.config.env.name), self.config.seed
        measured = utilities(before.items, episodes, cues=cues, resamples=10_000, seed=seed, together=True)
        harmful = retire(before, measured)
        log = [edit for folder in folders for edit in read_edits(folder / names.EDITS)]
        return harmful, retired_ids([*log, *harmful])

    def _episodes(self, iterations: Iterable[int]) -> list[Trajectory]:
        """All training episodes of earlier iterations, with and without experience."""
        folders = [(n, self.store.iteration(n)) for n in iterations]
        files = [folder / names.episodes(stage) for n, folder in folders for stage in names.learning(folder, n)]
        return [t for file in files for t in read_jsonl(file, Trajectory)]

    async def collect(self, policy: Checkpoint, pool: ExperiencePool, k: int, number: int = 0) -> list[DistillExample]:
        """The examples of one round: trajectories of the teacher or student, filtered, with the teacher's contexts.

        With `distill.own` the iteration's rollouts are trained on too, in turn with the others.
        """
        config = self.config.distill
        if not config.epochs:
            return []
        stage = Stage(iteration=k, kind="collect", round=number)
        shown = self._spec(stage, policy, k - 1, config.attempts, pool)
        hidden = shown.model_copy(update={"pool": None})
        found = await self._play(stage, hidden if config.on_policy else shown, self.rounds(k)[number])
        own = await self.rollout(policy, k) if config.own else []
        sides = (weighted(side, config.filter, signed=config.signed) for side in (found, own))
        kept = in_turn(*sides)[: config.most or None]
        played = sum(len(conversations(t)) for t in (*found, *own))
        self.rejected = played - len(kept) + (self.rejected if number else 0)
        counts = self.store.iteration(k) / names.REDACTIONS
        write = partial(self.store.replace_json, stage)
        kept = without_secrets(kept, self.config.redact, counts, f"round {number}", write)
        if not kept:
            return []
        injector = None
        if config.scores_plain:
            injector = injector_of(shown, await self.backends.policies.load(policy, self.store.path))
        assert self.backends.renderer, "examples need a renderer"
        examples = []
        for one in kept:
            what = injector if one[0].pattern == "none" else None  # what was shown in the episode is in its records
            examples += await build_examples([one], self.backends.renderer, what, config.thoughts)
        return examples

    def rounds(self, k: int) -> list[Sequence[Task]]:
        """The training tasks of each round of iteration `k`."""
        config = self.config.distill
        return rounds(config, self.plan.draw(self.config, k, self.config.rollout.tasks, config.tasks))

    async def evaluate(
        self,
        policy: Checkpoint,
        suites: Sequence[str],
        modes: Sequence[Mode],
        pool: ExperiencePool,
        k: int,
        candidate: Candidate = 1,
    ) -> None:
        """Measure a policy on every suite in every mode; results go to the folder of iteration `k`.

        Results of candidate 2 replace those of candidate 1.
        """
        stages = [
            Stage(iteration=k, kind="evaluate", suite=suite, mode=mode, policy=policy.iteration, candidate=candidate)
            for suite in suites
            for mode in modes
        ]
        for stage in stages:
            if not self.store.done(stage):
                await self._measure(stage, policy, pool)
                written = (self.store.iteration(k) / name for name in names.OF_EVALUATION)
                self.store.mark(stage, *written, self.store.path / names.METRICS)
        if stages:  # changes nothing in a resumed run, unless an older version computed other lines
            found = self.diagnosis.update(self.results(), write=self._writer(stages[-1]))
            self._track(self._summarize(stages[-1], found))

    def _writer(self, stage: Stage) -> Callable[[Path, Iterable[BaseModel]], None]:
        return partial(self.store.replace, stage)

    def _summarize(self, stage: Stage, found: Sequence[Diagnostics]) -> list[SuiteMetrics]:
        lines = [one.metrics for one in found]
        self.store.replace(stage, self.store.path / names.METRICS, lines)
        return lines

    def _track(self, lines: Sequence[SuiteMetrics]) -> None:
        """Send the tracker the metrics that are new since the last call."""
        found: dict[int, dict[str, float]] = {}
        for line in lines:
            found.setdefault(line.iteration, {}).update(figures(line))
        for iteration, values in found.items():
            if self.tracker and (new := dict(values.items() - self.tracked.get(iteration, {}).items())):
                self.tracker.log(iteration, new)
        self.tracked = found

    async def _measure(self, stage: Stage, policy: Checkpoint, pool: ExperiencePool) -> None:
        suite, mode = stage.suite, stage.mode
        assert mode, "a stage of kind evaluate has a mode"
        folder, k, settings = self.store.iteration(stage.iteration), policy.iteration, self.config.evaluate
        playing = stage.model_copy(update={"kind": "episodes"})
        shown = pool if mode == "in_context" else None
        spec = self._spec(playing, policy, k, settings.attempts, shown, suite)
        found = await self._play(playing, spec, self.plan.suites[suite])
        if (suite, mode) == (settings.split, "internalized") and settings.drift:
            drift = await self.backends.trainer.drift(policy, self.store.path, found[: settings.drift])
            self.store.replace_json(stage, folder / names.DRIFT, drift)
        results = [eval_result(t, suite, mode, self.plan.env_of(suite)) for t in found]
        path = folder / names.EVALUATIONS
        held = read_jsonl(path, EvalResult) if path.exists() else []
        other = [r for r in held if (r.suite, r.mode, r.iteration) != (suite, mode, k)]
        self.store.replace(stage, path, [*other, *results])
        new, behaviour = group_of(results[0]), Behaviour.of_all(found)
        diagnostics = self.diagnosis.update(self.results(), new, behaviour, self._writer(stage))
        self._summarize(stage, diagnostics)
        if stage.iteration == k > 0:  # no warning for the measurement of a pool before training on it
            self.diagnosis.warn(diagnostics, k)

    # -- what is on disk ------------------------------------------------------------------------------------------

    def pool(self, k: int) -> ExperiencePool:
        """The pool after iteration `k`; empty for 0."""
        return load_pool(self.store.iteration(k) / names.POOL) if k else empty(self.config.extract.cap)

    def results(self) -> list[EvalResult]:
        """Every evaluation result so far."""
        folders = names.iterations(self.store.path, self.config.iterations).values()
        paths = [folder / names.EVALUATIONS for folder in folders]
        return list(gathered(read_jsonl(path, EvalResult) for path in paths if path.exists()))

    def checkpoint(self, k: int) -> Checkpoint:
        """The checkpoint trained in iteration `k`; the starter for 0."""
        if not k:
            return self.backends.starter
        return required(self.store.iteration(k) / names.CHECKPOINT, Checkpoint)

    def kept(self, k: int) -> Checkpoint:
        """The last checkpoint up to iteration `k` that the gate kept; the starter if it kept none."""
        for number in range(k, 0, -1):
            path = self.store.path / names.iteration(number) / names.GATE
            if required(path, Decision).promote:
                return self.checkpoint(number)
        return self.backends.starter

    # -- episodes -------------------------------------------------------------------------------------------------

    def _spec(
        self,
        stage: Stage,
        policy: Checkpoint,
        updates: int,
        attempts: int,
        pool: ExperiencePool | None = None,
        suite: str = "",
    ) -> RolloutSpec:
        """How a policy after `updates` trainings plays a stage's episodes, with or without a pool."""
        further = self.config.evaluate.further.get(suite)
        return RolloutSpec(
            config=self.config,
            root=self.store.path,
            checkpoint=policy,
            env=further.env if further else self.config.env,
            stage=_stage_name(stage),
            iteration=updates,
            attempts=attempts,
            pool=None if pool is None else pool.items,
            pool_version=pool.version if pool is not None else None,
            replies=self.store.iteration(stage.iteration) / names.SELECTIONS,
        )

    async def _play(self, stage: Stage, spec: RolloutSpec, tasks: Sequence[Task]) -> list[Trajectory]:
        path = self.store.iteration(stage.iteration) / names.episodes(stage)
        if self.store.done(stage):
            return read_jsonl(path, Trajectory)
        found = await self._record(stage, spec, tasks, self.report)
        self.store.mark(stage, path)
        return found

    async def _record(self, stage: Stage, spec: RolloutSpec, tasks: Sequence[Task], report: Report) -> list[Trajectory]:
        label = Label(spec.stage, spec.iteration, self.config.seed, spec.checkpoint.id, spec.attempts)
        ids = [episode_id(*job, label) for job in jobs_of(tasks, spec.attempts)]
        title = f"iteration {stage.iteration}: {spec.stage}"
        report(title, 0, len(ids))
        return await record(
            lambda done: self.backends.rollouts.run(spec, tasks, done),
            ids,
            self.store.iteration(stage.iteration) / names.episodes(stage),
            lambda done, total: report(title, done, total),
            spec.checkpoint.id,
        )


def _stage_name(stage: Stage) -> str:
    """The name of a stage of episodes. Ids and seeds of episodes depend on it: a changed name changes every run."""
    if stage.kind == "episodes":
        return f"evaluate {stage.suite} {stage.mode}{' second' if stage.candidate == 2 else ''}"
    return f"{stage.kind} {stage.round}" if stage.round else stage.kind
