"""Single stages with files in and files out: `internalize rollout`, `extract`, `distill` and `evaluate`.

Bad input is refused before a model is loaded. A command adds to an output file only if it began the file itself, so
episodes of other weights or settings are neither counted nor lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from internalize.config.schema import Config
from internalize.config.specs import RolloutSpec, TrainSpec
from internalize.environments import registry
from internalize.errors import DataError, TaskError, UserError
from internalize.evaluation.metrics import SuiteMetrics, eval_result, suite_metrics
from internalize.evaluation.outcomes import Outcomes
from internalize.experience.extract.contrast import why_no_rules
from internalize.experience.extract.session import ExtractionInput
from internalize.experience.extract.writer import extract, writer_of
from internalize.experience.pool import ExperiencePool, empty, load_pool, save_pool
from internalize.experience.redact import without_secrets
from internalize.inference.endpoints import endpoint_chat
from internalize.interfaces import ChatModel
from internalize.records import Checkpoint, DistillExample, TrainSummary, Trajectory, content_hash
from internalize.rollout.episode import Label, episode_id
from internalize.rollout.local import LocalRollouts, injector_of, jobs_of
from internalize.rollout.record import record
from internalize.runs import names
from internalize.runs.progress import Report
from internalize.runs.store import read_jsonl, recover, require_folder, write_json, write_jsonl
from internalize.training.examples import conversations, weighted

if TYPE_CHECKING:
    from internalize.training.policy import LocalPolicy

_LOG = logging.getLogger(__name__)
_FIRST_BYTES = b'{"id": '  # every file of trajectories begins so
_WITHOUT_EFFECT_ON_AN_EPISODE = {"rollout": {"split", "tasks", "attempts"}}


class Inputs(NamedTuple):
    """The inputs of a command besides the recipe: a pool to inject, and weights in place of the starter's."""

    pool: Path | None = None
    checkpoint: Path | None = None


class TaskSlice(NamedTuple):
    """The first `tasks` tasks of `split`, `attempts` times each."""

    split: str
    tasks: int
    attempts: int


def play(config: Config, amount: TaskSlice, out: Path, given: Inputs, report: Report) -> list[Trajectory]:
    """Roll out and add the episodes to `out`; episodes that an earlier call of this command wrote are kept.

    Raises UserError, before anything is played or written, for a missing folder, model or split, and DataError if `out`
    holds anything but episodes of this command.
    """
    require_folder(out)
    env = registry.make(config.env.name, config.env.options)
    tasks = env.tasks(amount.split)[: amount.tasks]
    if not tasks:
        raise TaskError(f"{env.name}: the split {amount.split!r} holds no tasks")
    pool = load_pool(given.pool) if given.pool else None
    policy = _policy(config, given)
    checkpoint = _given(policy, given.checkpoint)
    injects = pool is not None and pool.items and config.inject.pattern != "none"
    version = pool.version if pool and injects else None
    spec = RolloutSpec(
        config=config,
        root=out.parent,
        checkpoint=checkpoint,
        env=config.env,
        stage=f"{amount.split} {version} {checkpoint.id} {_setting(config, injects=bool(injects))}",
        iteration=0,
        attempts=amount.attempts,
        pool=pool.items if pool else None,
        replies=out.with_suffix(f".{names.SELECTIONS}"),
    )
    label = Label(spec.stage, 0, config.seed, checkpoint.id, amount.attempts)
    ids = [episode_id(*job, label) for job in jobs_of(tasks, amount.attempts)]
    _require_own_episodes(out, ids)
    backend = LocalRollouts(policy, lambda _: env)
    return asyncio.run(
        record(
            lambda done: backend.run(spec, tasks, done),
            ids,
            out,
            lambda done, total: report(f"{amount.split}: episodes", done, total),
        )
    )


def _setting(config: Config, *, injects: bool) -> str:
    """Hash of everything that determines an episode besides weights and pool.

    The model is part of it, because a checkpoint's id covers the trained weights but not the base weights under an
    adapter; so is the server, if a server acts.
    """
    sections = {"model", "env", "rollout", *(("inject",) if injects else ())}
    shape = config.model_dump(mode="json", include=sections, exclude=_WITHOUT_EFFECT_ON_AN_EPISODE)
    if config.model.endpoint:
        shape["server"] = config.endpoints[config.model.endpoint].model
    return content_hash(shape)


def _require_own_episodes(out: Path, ids: Collection[str]) -> None:
    """Repair a torn last line of `out`. Raises DataError if it holds anything but episodes with these ids."""
    if not out.exists():
        return
    with out.open("rb") as file:
        first = file.read(len(_FIRST_BYTES))
    if not _FIRST_BYTES.startswith(first):
        raise DataError(f"{out}: this is not a file of episodes; choose another --out")
    recover(out)
    if any(t.id not in set(ids) for t in read_jsonl(out, Trajectory)):
        raise DataError(f"{out}: holds episodes of another checkpoint or setting; choose another --out")


def extract_file(
    config: Config, trajectories: Path, out: Path, pool_file: Path | None, report: Report
) -> tuple[ExperiencePool, ExperiencePool, str]:
    """Write the new pool to `out` and its edits beside it; returns the pools before and after, and why it is empty.

    Answers of a language model are kept in the folder `out` with `.extraction`, so that the same command can resume.
    """
    require_folder(out)
    if out.resolve() == trajectories.resolve():
        raise UserError(f"{out}: is the file of trajectories; choose another --out")
    found = read_jsonl(trajectories, Trajectory)
    before = load_pool(pool_file) if pool_file else empty(config.extract.cap)
    cues = registry.cues(config.env.name)
    seen = ExtractionInput(found, (), before, max((t.iteration for t in found), default=0), cues=cues)
    edits = asyncio.run(
        extract(
            config,
            seen,
            _answers(config, out),
            lambda: _writer(config),
            lambda done, of: report("extract: tasks", done, of),
        )
    )
    after = before.apply(edits)
    write_jsonl(out.with_suffix(f".{names.EDITS}"), edits)
    save_pool(after, out)
    return before, after, "" if after.items else _why_empty(config, found)


def _why_empty(config: Config, trajectories: Sequence[Trajectory]) -> str:
    text = Outcomes.of(trajectories).text
    if config.extract.source == "contrast" and config.extract.granularity == "principle":
        text += f"; {why_no_rules(trajectories, config.extract, registry.cues(config.env.name))}"
    return text


def _answers(config: Config, out: Path) -> Path:
    """The folder of replies. For the policy it is named after its weights, because every policy is called 'self'."""
    weights = content_hash(config.model.model_dump(mode="json")) if config.extract.source == "self" else ""
    return out.with_suffix(f".extraction{weights and '-'}{weights}")


def _writer(config: Config) -> ChatModel:
    name = writer_of(config)
    return _policy(config).chat() if name == "self" else endpoint_chat(config, name)


def distill_file(config: Config, trajectories: Path, out: Path, given: Inputs, report: Report) -> TrainSummary:
    """Train on the trajectories that pass the recipe's filter and write the weights to the new folder `out`.

    With a pool, the teacher is shown its items at every step; else it sees the experience recorded in the trajectories.
    Raises DataError if there is nothing to learn from, UserError for a recipe that needs an environment.
    """
    out = out.resolve()
    require_folder(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: already holds files; choose another --out")
    if config.distill.refresh:
        raise UserError(
            f"distill.generator.refresh = {config.distill.refresh} rolls out anew while it trains, which a file of "
            "trajectories cannot; set distill.generator.refresh=0, or use `internalize run`"
        )
    pool = load_pool(given.pool) if given.pool else None
    found = read_jsonl(trajectories, Trajectory)
    kept = accepted(config, trajectories, found, pool)
    kept = without_secrets(kept, config.redact, out.with_suffix(f".{names.REDACTIONS}"), "train")
    policy = _policy(config, given)
    parent = _given(policy, given.checkpoint)
    spec = TrainSpec(
        config=config,
        root=out.parent,
        parent=parent,
        examples=trajectories,
        out=out.name,
        iteration=1,
        seed=config.seed,
        pool_version=pool.version if pool else None,
    )
    replies = out.with_suffix(f".{names.SELECTIONS}")
    examples = short_enough(config, trajectories, asyncio.run(_examples(spec, policy, kept, pool, replies)))
    summary = policy.train(examples, spec, progress=lambda done, total, _: report("distil", done, total))
    summary = summary.model_copy(
        update={
            "rejected": sum(len(conversations(t)) for t in found) - len(examples),
            "trajectories": trajectories.name,
            "pool": given.pool.name if given.pool else "",
        }
    )
    write_json(out / names.TRAINING, summary)
    write_json(out / names.CHECKPOINT, policy.checkpoint.model_copy(update={"path": ""}))
    return summary


async def _examples(
    spec: TrainSpec,
    policy: LocalPolicy,
    kept: Sequence[tuple[Trajectory, float]],
    pool: ExperiencePool | None,
    replies: Path,
) -> list[DistillExample]:
    """The trajectories as examples. With a pool, the teacher's context holds its items."""
    from .refresh import build_examples  # noqa: PLC0415 - it needs the learning half

    if pool is None:
        return await build_examples(kept, policy.renderer, None, spec.config.distill.thoughts)
    shown = RolloutSpec(
        config=spec.config,
        root=spec.root,
        checkpoint=spec.parent,
        env=spec.config.env,
        stage="",
        iteration=0,
        pool=pool.items,
        replies=replies,
    )
    await policy.load(spec.parent, spec.root)
    return await build_examples(kept, policy.renderer, injector_of(shown, policy), spec.config.distill.thoughts)


def short_enough(config: Config, path: Path | str, examples: Sequence[DistillExample]) -> list[DistillExample]:
    """The examples that fit into the context: an imported log may be of any length. Raises DataError if none fits."""
    most = config.model.max_context
    long = [e.trajectory_id for e in examples if max(span.end - span.origin for span in e.spans) > most]
    kept = [e for e in examples if e.trajectory_id not in long]
    if not examples:
        raise DataError(f"{path}: no trajectory can be trained on with this model's chat template")
    if not kept:
        raise DataError(f"{path}: all {len(examples)} trajectories are longer than model.max_context = {most} tokens")
    if long:
        _LOG.warning(
            "%s: %d of %d trajectories (first %s) are longer than model.max_context = %d tokens and are left out",
            path, len(long), len(examples), long[0], most,
        )  # fmt: skip
    return kept


def accepted(
    config: Config, path: Path | str, found: Sequence[Trajectory], pool: ExperiencePool | None
) -> list[tuple[Trajectory, float]]:
    """The trajectories that pass the filter, with weights. Raises DataError if nothing can be learnt from them."""
    settings = config.distill
    kept = weighted(found, settings.filter, signed=settings.signed)
    if not kept:
        raise DataError(f"{path}: none of {len(found)} trajectories passes the filter {settings.filter!r}")
    agree = settings.asks_teacher and settings.teacher.kind != "model" and not (pool and pool.items)
    if agree and not any(_was_shown_experience(t) for t, _ in kept):
        raise DataError(
            f"{path}: no experience was injected into any of {len(kept)} trajectories, so teacher and student agree "
            f"and under distill.divergence = {settings.divergence.kind!r} there is nothing to internalize"
        )
    return kept


def _was_shown_experience(trajectory: Trajectory) -> bool:
    shown = (trajectory.global_injection, *(step.injection for step in trajectory.steps))
    return any(injection is not None and injection.text for injection in shown)


def evaluate_file(config: Config, suite: str, out: Path, given: Inputs, report: Report) -> SuiteMetrics:
    """Metrics of one suite in one mode; the results are written beside the episodes."""
    settings = config.evaluate
    found = play(config, TaskSlice(suite, settings.tasks, settings.attempts), out, given, report)
    env = registry.make(config.env.name, config.env.options)
    mode: Literal["internalized", "in_context"] = "in_context" if given.pool else "internalized"
    results = [eval_result(t, suite, mode, env) for t in found]
    write_jsonl(out.with_suffix(".results.jsonl"), results)
    return suite_metrics(results, settings.resamples, config.seed)


def _policy(config: Config, given: Inputs | None = None) -> LocalPolicy:
    if given and given.checkpoint and not given.checkpoint.is_dir():  # before the model is loaded, which takes long
        raise UserError(f"{given.checkpoint}: no such checkpoint folder")
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - seconds to import; bad input is refused first

    return LocalPolicy.of(config)


def _given(policy: LocalPolicy, folder: Path | None) -> Checkpoint:
    """The checkpoint of a folder, loaded into the policy; without a folder the starter."""
    if folder is None:
        return policy.starter
    found = {"id": policy.restore(folder), "path": str(folder.resolve())}
    policy.checkpoint = policy.starter.model_copy(update=found)
    return policy.checkpoint
