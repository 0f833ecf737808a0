"""The stages as plain functions of records, for notebooks and scripts: what `import internalize` offers.

Their work runs in a thread with its own event loop, so they may be called where a loop runs already. A workbench cannot
be resumed; only a run directory (`loop.run`) survives being killed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from internalize.config.schema import Config
from internalize.config.specs import RolloutSpec, TrainSpec
from internalize.environments import registry
from internalize.environments.loop_thread import LoopThread
from internalize.environments.registry import Environments
from internalize.errors import TaskError, UserError
from internalize.evaluation.metrics import SuiteMetrics, eval_result, suite_metrics
from internalize.experience.extract.session import ExtractionInput
from internalize.experience.extract.writer import extract as edits_of
from internalize.experience.extract.writer import writer_of
from internalize.experience.pool import ExperiencePool, empty
from internalize.experience.redact import without_secrets
from internalize.records import Checkpoint, DistillExample, Mode, Task, TrainSummary, Trajectory
from internalize.rollout.episode import Label, episode_id
from internalize.rollout.local import injector_of, jobs_of
from internalize.runs import names
from internalize.runs.store import write_json, write_jsonl
from internalize.training.examples import conversations

from .plan import TaskPlan, plan_tasks, require_room
from .refresh import build_examples
from .run import Backends
from .standalone import accepted, short_enough


@dataclass(frozen=True)
class Workbench:
    """A recipe, its backends, and the folder for weights and for replies of language models."""

    config: Config
    folder: Path
    backends: Backends
    plan: TaskPlan
    thread: LoopThread = field(default_factory=LoopThread, repr=False)

    @property
    def starter(self) -> Checkpoint:
        """The policy before any training."""
        return self.backends.starter

    def training_tasks(self, k: int) -> tuple[list[Task], list[Task]]:
        """The tasks of iteration `k` (from 1), as in a run: those to roll out for experience, those to train on."""
        config = self.config
        drawn = self.plan.draw(config, k, 0, config.rollout.tasks)
        return drawn, self.plan.draw(config, k, config.rollout.tasks, config.distill.tasks)

    def close(self) -> None:
        """End the thread of the event loop, and processes that the backends have started."""
        self.thread.close()
        self.backends.close()


def open_workbench(
    config: Config, folder: Path | str, backends: Callable[[Config, Environments], Backends] | None = None
) -> Workbench:
    """Load the model that the recipe names (or what `backends` makes) and make the folder.

    Raises UserError if the model cannot be loaded or fails its self-check, TaskError for an unknown split or a task
    that is both in training and in a suite.
    """
    from .backends import local  # noqa: PLC0415 - imports torch, which other backends do not need

    environments = Environments()
    plan = plan_tasks(config, environments)
    made = (backends or local)(config, environments)
    require_room(config, plan, made.renderer)
    path = Path(folder).resolve()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be made ({error.strerror})") from error
    return Workbench(config, path, made, plan)


def roll_out(
    bench: Workbench,
    policy: Checkpoint,
    tasks: Sequence[Task],
    pool: ExperiencePool | None = None,
    *,
    attempts: int = 1,
    stage: str = "",
) -> list[Trajectory]:
    """Episodes of `policy`, `attempts` for each task in order; with a pool, its items are injected as [inject] says.

    A failed episode has its `failure` and no score. Seeds depend on the recipe's seed, the policy's iteration and
    `stage` ("" = "rollout", or "collect" with a pool). Raises Incomplete when a budget is spent.
    """
    spec = _spec(bench, policy, stage or ("rollout" if pool is None else "collect"), pool, attempts)
    return bench.thread.call(_episodes(bench, spec, tasks))


def extract(
    bench: Workbench,
    trajectories: Sequence[Trajectory],
    pool: ExperiencePool | None = None,
    policy: Checkpoint | None = None,
) -> ExperiencePool:
    """The pool (None = an empty one) edited by what the trajectories teach, as [extract] says.

    If `extract.source` is "self", `policy` writes (None = the starter). Raises TaskError for a task of a suite, and
    Incomplete if a language model did not answer everything; its answers are kept in the folder.
    """
    _refuse_measured(bench, trajectories)
    before = empty(bench.config.extract.cap) if pool is None else pool
    writer = policy or bench.starter
    iteration = max((t.iteration for t in trajectories), default=0) + 1
    cues = registry.cues(bench.config.env.name)
    seen = ExtractionInput(trajectories, (), before, iteration, frozenset(), writer.id, cues)
    name = writer_of(bench.config)

    async def edited() -> ExperiencePool:
        loaded = await bench.backends.policies.load(writer, bench.folder)
        return before.apply(await edits_of(bench.config, seen, bench.folder, lambda: loaded.chat(name)))

    return bench.thread.call(edited())


def distill(
    bench: Workbench,
    policy: Checkpoint,
    trajectories: Sequence[Trajectory],
    pool: ExperiencePool | None = None,
    report: Callable[[int, int, float], None] | None = None,
) -> tuple[Checkpoint, TrainSummary]:
    """Train `policy` on the trajectories that pass the recipe's filter; the weights go to a new folder.

    The teacher sees the experience recorded in each step or, with a `pool`, what the pool gives at each step. `report`
    receives the optimizer step, the number of steps and the loss. Raises DataError if there is nothing to learn from,
    TaskError for a task of a suite.
    """
    config = bench.config
    _refuse_measured(bench, trajectories)
    kept = accepted(config, "trajectories", trajectories, pool)
    kept = without_secrets(kept, config.redact, bench.folder / names.REDACTIONS, "train")
    out = next(name for n in count(1) if not (bench.folder / (name := f"{names.WEIGHTS}-{n}")).exists())
    spec = TrainSpec(
        config=config,
        root=bench.folder,
        parent=policy,
        examples=bench.folder / f"{out}-{names.EXAMPLES}",
        out=out,
        iteration=policy.iteration + 1,
        seed=config.seed * 1000 + policy.iteration + 1,
        pool_version=pool.version if pool else None,
    )

    async def trained() -> tuple[Checkpoint, TrainSummary]:
        examples = short_enough(config, "trajectories", await _examples(bench, policy, kept, pool))
        write_jsonl(spec.examples, examples)
        found, summary = await bench.backends.trainer.train(spec, report)
        played = sum(len(conversations(trajectory)) for trajectory in trajectories)
        counts = {"accepted": len(examples), "rejected": played - len(examples)}
        return found, summary.model_copy(update=counts)

    found, summary = bench.thread.call(trained())
    write_json(bench.folder / out / names.TRAINING, summary)
    write_json(bench.folder / out / names.CHECKPOINT, found)
    return found, summary


def evaluate(bench: Workbench, policy: Checkpoint, suite: str = "", pool: ExperiencePool | None = None) -> SuiteMetrics:
    """Success and other metrics on a split (or a suite of [evaluate.further]), in context if a pool is given.

    `suite` "" = `evaluate.split`. Raises TaskError for an unknown suite.
    """
    settings = bench.config.evaluate
    suite = suite or settings.split
    if suite not in bench.plan.suites:
        raise TaskError(f"no suite {suite!r} (there are {', '.join(sorted(bench.plan.suites))})")
    mode: Mode = "internalized" if pool is None else "in_context"
    spec = _spec(bench, policy, f"evaluate {suite} {mode}", pool, settings.attempts)
    if further := settings.further.get(suite):
        spec = spec.model_copy(update={"env": further.env})
    trajectories = bench.thread.call(_episodes(bench, spec, bench.plan.suites[suite]))
    results = [eval_result(t, suite, mode, bench.plan.env_of(suite)) for t in trajectories]
    return suite_metrics(results, settings.resamples, bench.config.seed)


def _refuse_measured(bench: Workbench, trajectories: Sequence[Trajectory]) -> None:
    """Raises TaskError for an episode on a task of a suite, which must not be learnt from (invariant 12)."""
    measured = {task.id for tasks in bench.plan.suites.values() for task in tasks}
    for trajectory in trajectories:
        if trajectory.task_id in measured:
            raise TaskError(f"trajectory {trajectory.id}: its task {trajectory.task_id} is in an evaluation suite")


def _spec(
    bench: Workbench, policy: Checkpoint, stage: str, pool: ExperiencePool | None, attempts: int = 1
) -> RolloutSpec:
    return RolloutSpec(
        config=bench.config,
        root=bench.folder,
        checkpoint=policy,
        env=bench.config.env,
        stage=stage,
        iteration=policy.iteration,
        attempts=attempts,
        pool=None if pool is None else pool.items,
        pool_version=None if pool is None else pool.version,
        replies=bench.folder / names.SELECTIONS,
    )


async def _episodes(bench: Workbench, spec: RolloutSpec, tasks: Sequence[Task]) -> list[Trajectory]:
    """All episodes, in the order of their tasks and attempts, not of their ends."""
    label = Label(spec.stage, spec.iteration, spec.config.seed, spec.checkpoint.id, spec.attempts)
    found = {t.id: t async for t in bench.backends.rollouts.run(spec, tasks)}
    return [found[episode_id(*job, label)] for job in jobs_of(tasks, spec.attempts)]


async def _examples(
    bench: Workbench, policy: Checkpoint, kept: Sequence[tuple[Trajectory, float]], pool: ExperiencePool | None
) -> list[DistillExample]:
    if bench.backends.renderer is None:
        raise UserError("these backends have no renderer, so no trajectory can be made an example for training")
    injector = None
    if pool is not None:
        loaded = await bench.backends.policies.load(policy, bench.folder)
        injector = injector_of(_spec(bench, policy, "", pool), loaded)
    return await build_examples(kept, bench.backends.renderer, injector, bench.config.distill.thoughts)
