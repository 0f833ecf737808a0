"""The training of an iteration: writes its examples to files and has a `TrainBackend` train on them, round by round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from internalize.config.specs import Round, TrainSpec
from internalize.errors import NothingLearnt
from internalize.evaluation.outcomes import ADVICE, Outcomes
from internalize.experience.pool import ExperiencePool
from internalize.records import Checkpoint, DistillExample, Stage, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.readers import required
from internalize.runs.store import read_jsonl, write_json, write_jsonl

from .refresh import merge_summaries, read_examples, replayed, split_held_out, training_rounds
from .run import Run


def require_success(
    run: Run, trajectories: Sequence[Trajectory], pool: ExperiencePool, examples: Sequence[DistillExample], k: int
) -> None:
    """Raises NothingLearnt if the first rollouts all failed and taught nothing: later ones would fail alike."""
    config = run.config
    learnt = pool.items or examples or any(t.score for t in trajectories)
    if k == 1 and config.distill.epochs and config.rollout.require_success and not learnt:
        found, go_on = Outcomes.of(trajectories).text, "rollout.require_success = false goes on all the same"
        raise NothingLearnt(f"iteration 1 gave nothing to learn: {found}; {ADVICE}; {go_on}")


async def distill(
    run: Run, policy: Checkpoint, pool: ExperiencePool, examples: Sequence[DistillExample], k: int
) -> Checkpoint:
    """Train the policy on the examples (and those of later rounds); the weights go to iter-k/checkpoint."""
    folder, stage = run.store.iteration(k), Stage(iteration=k, kind="distill")
    if not run.store.done(stage):
        run.report(f"iteration {k}: distil", 0, 1)
        found, summary, trained = await _rounds(run, policy, pool, examples, k)
        write_jsonl(folder / names.EXAMPLES, trained)
        summary = summary.model_copy(update={"accepted": len(trained), "rejected": run.rejected})
        write_json(folder / names.TRAINING, summary)
        write_json(folder / names.CHECKPOINT, found.model_copy(update={"parent": policy.id}))
        run.store.drop(stage, *names.round_state(folder, len(run.rounds(k))))
        wrote = (names.EXAMPLES, names.TRAINING, names.CHECKPOINT, names.WEIGHTS, names.REDACTIONS)
        run.store.mark(stage, *(folder / name for name in wrote))
    return run.checkpoint(k)


async def _rounds(
    run: Run, policy: Checkpoint, pool: ExperiencePool, examples: Sequence[DistillExample], k: int
) -> tuple[Checkpoint, TrainSummary, Sequence[DistillExample]]:
    """Train round after round. A finished round is known by its mark, its weights and its optimizer."""
    folder, plan, config = run.store.iteration(k), run.rounds(k), run.config.distill
    if len(plan) == 1:
        return *await train(run, policy, examples, k, names.WEIGHTS), examples
    examples, held = split_held_out(config, plan, examples, run.config.seed * 1000 + k)
    current, trained, summaries = policy, [*examples], []
    earlier = len(read_examples(earlier_examples(run, k))) if config.replay else 0
    for number, part in enumerate(training_rounds(config, plan, folder, policy, held, earlier)):
        examples_file, stage = folder / names.round_examples(number), Stage(iteration=k, kind="round", round=number)
        if number:  # a finished round is only read: the weights that collected it may be gone
            examples = (
                read_jsonl(examples_file, DistillExample)
                if run.store.done(stage)
                else await run.collect(current, pool, k, number)
            )
            trained += examples
        weights = names.WEIGHTS if number == len(plan) - 1 else names.round_weights(number)
        summary_file, record = folder / names.round_summary(number), folder / names.round_checkpoint(number)
        if not run.store.done(stage):
            write_jsonl(examples_file, examples)
            after, summary = await train(run, current, examples, k, weights, part)
            write_json(summary_file, summary.model_copy(update={"rejected": run.rejected}))
            write_json(record, after)
            files = (examples_file, summary_file, record, folder / weights, folder / names.round_optimizer(number))
            run.store.mark(stage, *files)
        current = required(record, Checkpoint)
        if (folder / names.round_optimizer(number)).exists():  # a round without examples has no optimizer
            run.store.drop(stage, *names.round_state(folder, number))
        summaries.append(required(summary_file, TrainSummary))
        run.rejected = summaries[-1].rejected or 0
    return current, merge_summaries(summaries), trained


async def train(
    run: Run,
    parent: Checkpoint,
    examples: Sequence[DistillExample],
    k: int,
    weights: str,
    part: Round | None = None,
    shrink: float = 1.0,
) -> tuple[Checkpoint, TrainSummary]:
    """One training, with examples of earlier iterations mixed in; the weights go to iter-k/`weights`."""
    number = part.number if part else 0
    seed = run.config.seed * 1000 + k + 7919 * number
    file = run.store.iteration(k) / names.TRAINER_INPUT
    write_jsonl(file, [*examples, *replayed(earlier_examples(run, k), run.config.distill.replay, len(examples), seed)])
    title = f"iteration {k}: distil {number or ''}".rstrip()
    spec = TrainSpec(
        config=run.config,
        root=run.store.path,
        parent=parent,
        examples=file,
        out=f"{names.iteration(k)}/{weights}",
        iteration=k,
        seed=seed,
        pool_version=run.pool(k).version,
        part=part,
        shrink=shrink,
    )

    def stepped(done: int, total: int, loss: float) -> None:
        run.report(title, done, total)
        if run.tracker:
            run.tracker.log(done, {f"train/{title}/loss": loss})

    found = await run.backends.trainer.train(spec, stepped)
    file.unlink()
    return found


def earlier_examples(run: Run, k: int) -> list[Path]:
    """The files of examples that the iterations before `k` trained on."""
    return [run.store.iteration(n) / names.EXAMPLES for n in range(1, k)]
