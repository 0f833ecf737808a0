"""The loop on one page: roll out, extract, collect with experience, distil, evaluate, gate; K times.

Left out: everything inside a stage. What must not change: every iteration is measured without and with the pool,
and a stage that is finished on disk is not run again, so the same call starts a run and resumes it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from internalize.config.schema import Config
from internalize.environments import registry
from internalize.runs.names import MODES
from internalize.runs.progress import Report
from internalize.runs.store import RunStore
from internalize.stages.promote import gate
from internalize.stages.run import Run, plan_tasks, silent
from internalize.training.policy import LocalPolicy


def run(
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    report: Report = silent,
    load: Callable[[Config], LocalPolicy] = LocalPolicy.load,
) -> None:
    """Run `config` in the directory `out`, or go on with it.

    Raises UserError for bad input before anything is written, Incomplete when work is left that a resume can do.
    """
    env = registry.make(config.env.name, config.env.options)
    plan = plan_tasks(config, env)
    policy = load(config)
    with RunStore.open(out, config, resume=resume) as store:
        store.keep_check(policy.self_check)
        iterate(Run(config, store, policy, env, plan, report))


def iterate(this: Run) -> None:
    """K iterations. Iteration 0 is the starter, only measured."""
    config = this.config
    suite, finals, further = (config.evaluate.split,), config.evaluate.final_splits, tuple(config.evaluate.further)
    nothing = this.pool(0)
    this.evaluate(0, (*suite, *further, *finals), ("internalized",), nothing, folder=0)
    for k in range(1, config.iterations + 1):
        this.restore(this.kept(k - 1))
        trajectories = this.rollout(k)
        pool = this.extract(k, trajectories)
        before = this.kept(k - 1)
        shown = config.inject.pattern != "none" and pool.items
        if shown and (before < k - 1 or pool.version != this.pool(k - 1).version):  # what it gives before it is learnt
            this.evaluate(before, suite, ("in_context",), pool, folder=k)
        examples = this.collect(k, pool)
        this.distill(k, examples)
        this.evaluate(k, suite, MODES, pool, folder=k)
        if gate(this, k).promote and further:
            this.restore(k)
            this.evaluate(k, further, ("internalized",), pool, folder=k)
    last = this.kept(config.iterations)
    this.restore(last)
    this.evaluate(last, finals, MODES, this.pool(config.iterations), folder=last)
