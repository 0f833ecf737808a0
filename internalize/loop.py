"""The loop on one page: roll out, extract, collect with experience, distill, evaluate, gate; K times.

A policy is passed around as its `Checkpoint` record. A stage that is finished on disk is not run again, so the same
call starts a run and resumes it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from internalize.config.schema import Config
from internalize.environments.loop_thread import finish
from internalize.environments.registry import Environments
from internalize.experience.redact import require_no_secrets
from internalize.runs.names import MODES
from internalize.runs.progress import Report
from internalize.runs.store import RunStore, check
from internalize.runs.tracking import require_packages, tracking
from internalize.stages.backends import local, require
from internalize.stages.learn import distill, require_success
from internalize.stages.plan import plan_tasks, require_room
from internalize.stages.promote import gate
from internalize.stages.run import Backends, Run, silent
from internalize.stages.story import sentence
from internalize.stages.tracked import recipe_facts, track_iteration


def run(
    config: Config,
    out: Path | str,
    *,
    resume: bool = False,
    report: Report = silent,
    story: Callable[[str], None] = lambda _: None,
    backends: Callable[[Config, Environments], Backends] = local,
) -> None:
    """Start or resume a run of `config` in the directory `out`. `story` receives one sentence an iteration.

    Raises UserError for bad input before anything is written, Incomplete when work is left that a resume can do.
    """
    require_packages(config.track)
    require_no_secrets(config)
    check(Path(out), config, resume=resume)
    if backends is local:
        require(config)
    environments = Environments()
    plan = plan_tasks(config, environments)
    made = backends(config, environments)
    require_room(config, plan, made.renderer)
    with (
        closing(made),
        RunStore.open(Path(out), config, resume=resume) as store,
        tracking(config.track, store.path) as tracker,
    ):
        store.keep_check(made.self_check)
        tracker.describe(recipe_facts(config))
        finish(iterate(Run(config, store, made, plan, report, tracker), story))


async def iterate(run: Run, story: Callable[[str], None]) -> None:
    """Run K iterations. Iteration 0 only measures the starter."""
    config, policy, pool = run.config, run.backends.starter, run.pool(0)
    suite, finals, further = (config.evaluate.split,), config.evaluate.final_splits, tuple(config.evaluate.further)
    await run.evaluate(policy, (*suite, *further, *finals), ("internalized",), pool, 0)
    story(sentence(run, 0))
    for k in range(1, config.iterations + 1):
        before, began = pool, time.monotonic()
        trajectories = await run.rollout(policy, k)
        pool = await run.extract(policy, trajectories, k)
        shown = config.inject.pattern != "none" and pool.items
        changed = policy.iteration < k - 1 or pool.version != before.version
        if shown and changed and config.measures(k - 1) and config.measures(k):  # the pool, before training on it
            await run.evaluate(policy, suite, ("in_context",), pool, k)
        examples = await run.collect(policy, pool, k)
        require_success(run, trajectories, pool, examples, k)
        candidate = await distill(run, policy, pool, examples, k)
        async with run.ahead(candidate, k + 1):
            await run.evaluate(candidate, suite if config.measures(k) else (), MODES, pool, k)
        policy = await gate(run, policy, candidate, pool, k)
        if policy.iteration == k and further and config.measures(k):
            await run.evaluate(policy, further, ("internalized",), pool, k)
        track_iteration(run, k)
        story(sentence(run, k, time.monotonic() - began))
    await run.evaluate(policy, finals, MODES, pool, policy.iteration)
