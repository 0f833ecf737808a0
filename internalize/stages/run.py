"""The stages of an iteration over one run directory: each takes and gives records, and finds its own finished work.

    iter-K/  rollouts.jsonl · pool.json, edits.jsonl · teacher.jsonl · train.jsonl, train.json, checkpoint/
             episodes-SUITE-MODE.jsonl, evaluations.jsonl · gate.json        (iter-0: the starter, measured)

Left out: the order of stages (loop.py). What must not change: a stage is marked done only when its files are on
disk; tasks of the evaluation suites never reach extraction or training, by id and by question (invariant 12).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from internalize.config.schema import Config
from internalize.environments import registry
from internalize.errors import TaskError
from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import eval_result, gathered, group_of
from internalize.experience.extract.session import ExtractionInput
from internalize.experience.extract.writer import extract, writer_of
from internalize.experience.inject import Injector
from internalize.experience.pool import ExperiencePool, empty, load_pool, read_edits, save_pool
from internalize.experience.redact import without_secrets
from internalize.experience.utility import retire, retired_ids, utilities, without_retired
from internalize.inference.endpoints import chat_model
from internalize.interfaces import Environment
from internalize.records import (
    Candidate,
    Checkpoint,
    DistillExample,
    EvalResult,
    Mode,
    PoolEdit,
    Stage,
    Task,
    TrainSummary,
    Trajectory,
)
from internalize.rollout.episode import Label
from internalize.rollout.local import rollout
from internalize.runs import names
from internalize.runs.progress import Report
from internalize.runs.store import RunStore, read_jsonl, write_json, write_jsonl
from internalize.training.examples import weighted
from internalize.training.policy import LocalPolicy
from internalize.training.teachers import Round
from internalize.training.weights import State

from .diagnose import Diagnosis
from .refresh import clear, examples_of, learnt, parts, replayed, rounds, together, without_held_out


def silent(stage: str, done: int, total: int) -> None:
    """Reports nothing."""


class Plan(NamedTuple):
    """The tasks of a run: each suite's, and the training split in its drawn order."""

    suites: dict[str, tuple[Task, ...]]
    training: list[Task]
    others: dict[str, Environment] = {}  # noqa: RUF012 - never changed; of the further suites


def plan_tasks(config: Config, env: Environment) -> Plan:
    """Choose the tasks. Raises TaskError for an unknown or empty split, or a task in training and in a suite.

    UserError for a further suite whose environment cannot be made.
    """
    settings = config.evaluate
    others = {name: registry.make(suite.env.name, suite.env.options) for name, suite in settings.further.items()}
    suites = {name: others[name].tasks(suite.split)[: suite.tasks] for name, suite in settings.further.items()}
    suites |= {split: env.tasks(split)[: settings.final_tasks] for split in settings.final_splits}
    suites[settings.split] = env.tasks(settings.split)[: settings.tasks]
    if taken := others.keys() & {settings.split, *settings.final_splits}:
        raise TaskError(f"evaluate.further.{min(taken)}: that is the name of a split that is measured anyway")
    training = list(env.tasks(config.rollout.split))
    for name, tasks in {**suites, config.rollout.split: training}.items():
        of = f"evaluate.further.{name}: {others[name].name}" if name in others else env.name
        split = settings.further[name].split if name in others else name
        if not tasks:
            raise TaskError(f"{of}: the split {split!r} holds no tasks")
    require_disjoint(training, [task for tasks in suites.values() for task in tasks])
    random.Random(config.seed).shuffle(training)
    return Plan(suites, training, others)


@dataclass
class Run:
    """One run: its directory, its policy, its environment, its tasks."""

    config: Config
    store: RunStore
    policy: LocalPolicy
    env: Environment
    plan: Plan
    report: Report = silent
    _rejected: int = 0  # of the last `collect`

    @cached_property
    def diagnosis(self) -> Diagnosis:
        """Diagnostics and warning signs of what was measured."""
        return Diagnosis(self.store.path, self.config, self.plan.suites)

    # -- the stages, in the order of the loop ---------------------------------------------------------------------

    def rollout(self, k: int) -> list[Trajectory]:
        """What the policy does now, without experience."""
        config = self.config.rollout
        tasks = self._draw(k, 0, config.tasks)
        return self._play(Stage(iteration=k, kind="rollout"), k - 1, tasks, Injector(), config.attempts)

    def extract(self, k: int, trajectories: Sequence[Trajectory]) -> ExperiencePool:
        """The pool of the iteration before, edited by what these trajectories and the recent ones teach."""
        folder, stage = self.store.iteration(k), Stage(iteration=k, kind="extract")
        if not self.store.done(stage):
            before = self.pool(k - 1)
            earlier = self._episodes(range(max(1, k - self.config.extract.window + 1), k))
            harmful, barred = self._retired(k, before)
            pool, checkpoint = before.apply(harmful), self.policy.checkpoint
            seen = ExtractionInput(trajectories, earlier, pool, k, barred, checkpoint)
            title = f"iteration {k}: extract"
            found = extract(
                self.config,
                seen,
                folder,
                lambda: chat_model(self.config, writer_of(self.config), self.policy),
                lambda done, total: self.report(title, done, total),
            )
            edits = (*harmful, *without_retired(found, barred))
            write_jsonl(folder / names.EDITS, edits)
            save_pool(before.apply(edits), folder / names.POOL)
            self.store.mark(stage)
        return self.pool(k)

    def _retired(self, k: int, before: ExperiencePool) -> tuple[tuple[PoolEdit, ...], frozenset[str]]:
        """DELETEs of what harmed in recent iterations' training episodes, and every item ever retired."""
        settings = self.config.extract
        if not settings.retire:
            return (), frozenset()
        folders = [self.store.iteration(n) for n in range(1, k)]
        episodes = self._episodes(range(max(1, k - settings.window), k))
        measured = utilities(before.items, episodes, resamples=10_000, seed=self.config.seed, together=True)
        harmful = retire(before, measured)
        log = [edit for folder in folders for edit in read_edits(folder / names.EDITS)]
        return harmful, retired_ids([*log, *harmful])

    def _episodes(self, iterations: Iterable[int]) -> list[Trajectory]:
        """All training episodes of earlier iterations, with and without experience."""
        folders = [(n, self.store.iteration(n)) for n in iterations]
        files = [folder / names.episodes(stage) for n, folder in folders for stage in names.learning(folder, n)]
        return [t for file in files for t in read_jsonl(file, Trajectory)]

    def pool(self, k: int) -> ExperiencePool:
        """The pool after iteration `k`; empty for 0."""
        return load_pool(self.store.iteration(k) / names.POOL) if k else empty(self.config.extract.cap)

    def collect(self, k: int, pool: ExperiencePool, number: int = 0) -> list[DistillExample]:
        """Trajectories of one round to learn from (teacher's or student's), filtered, with the teacher's contexts."""
        config = self.config.distill
        if not config.epochs:
            return []
        injector = self._injector(k, pool)
        playing = injector if config.generator == "teacher" else Injector(pool_version=pool.version)
        stage = Stage(iteration=k, kind="collect", round=number)
        found = self._play(stage, k - 1, self._rounds(k)[number], playing, config.attempts)
        kept = weighted(found, config.filter)
        self._rejected = len(found) - len(kept) + (self._rejected if number else 0)
        kept = without_secrets(kept, self.config.redact, self.store.iteration(k) / names.REDACTIONS, f"round {number}")
        to_be_shown = config.generator == "student" and config.divergence != "sft"
        return asyncio.run(examples_of(kept, self.policy.renderer, injector if to_be_shown else None))

    def distill(self, k: int, examples: Sequence[DistillExample]) -> None:
        """Train the policy on the examples (and those of later rounds); its new weights are iter-k/checkpoint."""
        folder, stage = self.store.iteration(k), Stage(iteration=k, kind="distill")
        if self.store.done(stage):
            self.policy.restore(folder / names.WEIGHTS)
            return
        parent = self.policy.checkpoint
        self.report(f"iteration {k}: distil", 0, 1)
        trained, summary = self._learn(k, examples)
        write_jsonl(folder / names.EXAMPLES, trained)
        summary = summary.model_copy(update={"accepted": len(trained), "rejected": self._rejected})
        write_json(folder / names.TRAINING, summary)
        record = Checkpoint(
            id=self.policy.checkpoint,
            parent=parent,
            iteration=k,
            pool_version=self.pool(k).version,
            config_digest=self.config.digest,
            path=f"{names.iteration(k)}/{names.WEIGHTS}",
        )
        write_json(folder / names.CHECKPOINT, record)
        clear(folder, len(self._rounds(k)))
        self.store.mark(stage)

    def _learn(self, k: int, examples: Sequence[DistillExample]) -> tuple[Sequence[DistillExample], TrainSummary]:
        """Train round after round. One that was finished is known by its mark, its weights and its optimizer."""
        folder, plan = self.store.iteration(k), self._rounds(k)
        if len(plan) == 1:
            return examples, self.train(k, examples, folder / names.WEIGHTS)
        examples, held = without_held_out(self.config.distill, plan, examples, self.config.seed * 1000 + k)
        start, seen, summaries = self.policy.weights(), [*examples], []
        earlier = len(learnt(self._learnt(k))) if self.config.distill.replay else 0
        for number, part in enumerate(parts(self.config.distill, plan, folder, held, earlier)):
            if number:
                examples = self.collect(k, self.pool(k), number)
                seen += examples
            weights = folder / (names.WEIGHTS if number == len(plan) - 1 else names.round_weights(number))
            kept, stage = folder / names.round_summary(number), Stage(iteration=k, kind="round", round=number)
            if not self.store.done(stage):
                write_json(kept, self.train(k, examples, weights, number, start, part))
                self.store.mark(stage)
            elif weights.exists():
                self.policy.restore(weights)
            if (folder / names.round_optimizer(number)).exists():  # a round without examples leaves none
                clear(folder, number)
            summaries.append(TrainSummary.model_validate_json(kept.read_bytes()))
        return seen, together(summaries)

    def train(
        self,
        k: int,
        examples: Sequence[DistillExample],
        weights: Path,
        number: int = 0,
        start: State | None = None,
        part: Round | None = None,
        shrink: float = 1.0,
    ) -> TrainSummary:
        """One training, with examples of earlier iterations mixed in."""
        seed = self.config.seed * 1000 + k + 7919 * number
        title = f"iteration {k}: distil {number or ''}".rstrip()
        return self.policy.train(
            [*examples, *replayed(self._learnt(k), self.config.distill.replay, len(examples), seed)],
            seed=seed,
            folder=weights,
            progress=lambda done, total, _: self.report(title, done, total),
            start=start,
            part=part,
            shrink=shrink,
        )

    def _learnt(self, k: int) -> list[Path]:
        """Files of what the iterations before `k` were trained on."""
        return [self.store.iteration(n) / names.EXAMPLES for n in range(1, k)]

    def evaluate(
        self,
        k: int,
        suites: Sequence[str],
        modes: Sequence[Mode],
        pool: ExperiencePool,
        folder: int,
        candidate: Candidate = 1,
    ) -> None:
        """Measure the policy of iteration `k` on every suite in every mode; results go to iter-`folder`.

        Those of candidate 2 take the place of those of candidate 1.
        """
        for suite in suites:
            for mode in modes:
                stage = Stage(iteration=folder, kind="evaluate", suite=suite, mode=mode, policy=k, candidate=candidate)
                if not self.store.done(stage):
                    self._measure(stage, suite, mode, pool)
                    self.store.mark(stage)
        self._write_metrics()

    def _measure(self, stage: Stage, suite: str, mode: Mode, pool: ExperiencePool) -> None:
        folder, k, settings = self.store.iteration(stage.iteration), stage.policy, self.config.evaluate
        injector = self._injector(stage.iteration, pool) if mode == "in_context" else Injector()
        tasks, env = self.plan.suites[suite], self.plan.others.get(suite, self.env)
        playing = stage.model_copy(update={"kind": "episodes"})
        found = self._play(playing, k, tasks, injector, settings.attempts, env)
        if (suite, mode) == (settings.split, "internalized") and settings.drift:
            write_json(folder / names.DRIFT, self.policy.drift(found[: settings.drift], k))
        results = [eval_result(t, suite, mode, env) for t in found]
        path = folder / names.EVALUATIONS
        held = read_jsonl(path, EvalResult) if path.exists() else []
        other = [r for r in held if (r.suite, r.mode, r.iteration) != (suite, mode, k)]
        write_jsonl(path, [*other, *results])
        diagnostics = self.diagnosis.update(self.results(), group_of(results[0]), Behaviour.of_all(found))
        if stage.iteration == k > 0:  # not a pool that is measured before it is learnt
            self.diagnosis.tell(diagnostics, k)

    def results(self) -> list[EvalResult]:
        """Every evaluation result so far."""
        folders = names.iterations(self.store.path, self.config.iterations).values()
        paths = [folder / names.EVALUATIONS for folder in folders]
        return list(gathered(read_jsonl(path, EvalResult) for path in paths if path.exists()))

    def kept(self, k: int) -> int:
        """The last iteration up to `k` whose checkpoint the gate kept; 0 = the starter."""
        for number in range(k, 0, -1):
            path = self.store.path / names.iteration(number) / names.GATE
            if Decision.model_validate_json(path.read_bytes()).promote:
                return number
        return 0

    def restore(self, k: int) -> None:
        """Load the weights of iteration `k`."""
        if not k:
            self.policy.restore(None)
            return
        record = Checkpoint.model_validate_json((self.store.iteration(k) / names.CHECKPOINT).read_bytes())
        self.policy.restore(self.store.path / record.path)

    # -- shared ---------------------------------------------------------------------------------------------------

    def _draw(self, k: int, offset: int, count: int) -> list[Task]:
        """`count` training tasks for iteration `k`: a window over the shuffled split, wrapping around."""
        an_iteration = self.config.rollout.tasks + self.config.distill.tasks
        start = (k - 1) * an_iteration + offset
        return [
            self.plan.training[(start + i) % len(self.plan.training)]
            for i in range(min(count, len(self.plan.training)))
        ]

    def _rounds(self, k: int) -> list[Sequence[Task]]:
        config = self.config.distill
        return rounds(config, self._draw(k, self.config.rollout.tasks, config.tasks))

    def _injector(self, folder: int, pool: ExperiencePool) -> Injector:
        selector = self.policy.selector(self.store.iteration(folder) / names.SELECTIONS)
        return Injector.over(pool, self.config.inject, selector)

    def _play(
        self,
        stage: Stage,
        policy: int,
        tasks: Sequence[Task],
        injector: Injector,
        attempts: int,
        env: Environment | None = None,
    ) -> list[Trajectory]:
        """The episodes of a stage, played by the policy after `policy` updates."""
        path = self.store.iteration(stage.iteration) / names.episodes(stage)
        if self.store.done(stage):
            return read_jsonl(path, Trajectory)
        label = Label(_said(stage), policy, self.config.seed, self.policy.checkpoint, attempts)
        title = f"iteration {stage.iteration}: {label.stage}"
        self.report(title, 0, len(tasks) * attempts)
        found = asyncio.run(
            rollout(
                tasks,
                env or self.env,
                self.policy.agent,
                injector,
                label,
                path=path,
                progress=lambda done, total: self.report(title, done, total),
            )
        )
        self.store.mark(stage)
        return found

    def _write_metrics(self) -> None:
        lines = [one.metrics for one in self.diagnosis.update(self.results())]
        write_jsonl(self.store.path / names.METRICS, lines)


def _said(stage: Stage) -> str:
    """A stage of episodes in words. Ids and seeds of episodes are made from them: changed, every run would differ."""
    if stage.kind == "episodes":
        return f"evaluate {stage.suite} {stage.mode}{' second' if stage.candidate == 2 else ''}"
    return f"{stage.kind} {stage.round}" if stage.round else stage.kind


def require_disjoint(training: Sequence[Task], measured: Sequence[Task]) -> None:
    """Raises TaskError naming a task that stands in both, by id or by question (invariant 12)."""
    ids, questions = {t.id for t in measured}, {" ".join(t.question.split()).lower() for t in measured}
    for task in training:
        if task.id in ids or " ".join(task.question.split()).lower() in questions:
            raise TaskError(f"task {task.id} ({task.question[:60]!r}) is both in training and in an evaluation suite")
