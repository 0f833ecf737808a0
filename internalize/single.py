"""One stage at a time, files in and files out: what the single-stage commands call.

Left out: run directories (stages.py). What must not change: the stages are the loop's own, not second versions.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from .config import Config
from .distill.examples import build_example, select
from .distill.trainer import TrainSummary
from .environments import registry
from .errors import DataError
from .extract.contrast import contrast
from .inject import Injector
from .metrics import SuiteMetrics, eval_result, suite_metrics
from .policy import LocalPolicy
from .pool import ExperiencePool, empty, load_pool, save_pool
from .records import EvalResult, Trajectory
from .rollout import Label
from .rollout import rollout as roll_out
from .stages import Report
from .store import read_jsonl, recover, write_jsonl


def play(
    config: Config,
    split: str,
    count: int,
    attempts: int,
    out: Path,
    pool_file: Path | None,
    checkpoint: Path | None,
    report: Report,
) -> list[Trajectory]:
    """Episodes on the first `count` tasks of a split, appended to `out`."""
    env = registry.make(config.env.name, config.env.options)
    tasks = env.tasks(split)[:count]
    pool = load_pool(pool_file) if pool_file else None
    policy = LocalPolicy.load(config)
    if checkpoint:
        policy.restore(checkpoint)
    injector = Injector.over(pool, config.inject) if pool else Injector()
    label = Label(f"{split} {injector.pool_version}", 0, config.seed, policy.checkpoint, attempts)
    recover(out)
    return asyncio.run(
        roll_out(
            tasks,
            env,
            policy.actor,
            injector,
            label,
            path=out,
            progress=lambda done, total: report(f"{split}: episodes", done, total),
        )
    )


def extract_file(
    config: Config, trajectories: Path, out: Path, pool_file: Path | None
) -> tuple[ExperiencePool, ExperiencePool]:
    """The pool before and after; written to `out`, its edits to `out` with `.edits.jsonl`."""
    found = read_jsonl(trajectories, Trajectory)
    before = load_pool(pool_file) if pool_file else empty(config.extract.cap)
    edits = contrast(found, before, config.extract, max((t.iteration for t in found), default=0))
    after = before.apply(edits)
    write_jsonl(out.with_suffix(".edits.jsonl"), edits)
    save_pool(after, out)
    return before, after


def distill_file(
    config: Config, trajectories: Path, out: Path, checkpoint: Path | None, report: Report
) -> TrainSummary:
    """Train on the trajectories that pass the recipe's filter. Raises DataError when none does."""
    found = read_jsonl(trajectories, Trajectory)
    kept = select(found, config.distill.filter)
    if not kept:
        raise DataError(
            f"{trajectories}: none of {len(found)} trajectories passes the filter {config.distill.filter!r}"
        )
    policy = LocalPolicy.load(config)
    if checkpoint:
        policy.restore(checkpoint)
    examples = [e for t in kept if (e := build_example(t, policy.renderer)) is not None]
    return policy.train(
        examples, seed=config.seed, folder=out, progress=lambda done, total, _: report("distil", done, total)
    )


def evaluate_file(
    config: Config, suite: str, out: Path, pool_file: Path | None, checkpoint: Path | None, report: Report
) -> SuiteMetrics:
    """Metrics of one suite in one mode; the results are written beside the episodes."""
    settings = config.evaluate
    found = play(config, suite, settings.tasks, settings.attempts, out, pool_file, checkpoint, report)
    env = registry.make(config.env.name, config.env.options)
    mode = "in_context" if pool_file else "internalized"
    results: list[EvalResult] = [eval_result(t, suite, mode, env) for t in found]
    write_jsonl(out.with_suffix(".results.jsonl"), results)
    return suite_metrics(results, settings.resamples, config.seed)
