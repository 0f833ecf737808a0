"""The gate at work: the new checkpoint is kept, or a milder one is tried, or the run goes back to the parent.

iter-K/gate.json has the decision and its numbers, for the first candidate too. The results of a second candidate
replace those of the first, which stay in evaluations-first.jsonl. A decision is written before it takes effect, so a
resumed run reads it instead of deciding again.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from internalize.evaluation.gate import Decision, decide, worse
from internalize.evaluation.metrics import by_task
from internalize.evaluation.stats import paired_difference, won_and_lost
from internalize.experience.pool import ExperiencePool
from internalize.records import Checkpoint, DistillExample, EvalResult, Stage
from internalize.runs import names
from internalize.runs.readers import record
from internalize.runs.store import read_jsonl, write_json, write_jsonl

from .learn import train
from .run import Run


async def gate(run: Run, policy: Checkpoint, candidate: Checkpoint, pool: ExperiencePool, k: int) -> Checkpoint:
    """The candidate, or a milder candidate, or the policy that was trained."""
    folder, stage = run.store.iteration(k), Stage(iteration=k, kind="gate")
    if not run.store.done(stage):
        first_file = folder / names.FIRST_GATE
        first = record(first_file, Decision) or _decided(run, k)
        if not first.promote and run.config.gate.rule == "confirm":
            write_json(folder / names.GATE, await _confirmed(run, candidate, pool, first))
        elif not first.promote and run.config.gate.rule in {"retry", "average"}:
            write_json(first_file, first)
            write_json(folder / names.GATE, await _second(run, policy, candidate, pool, first))
        else:
            write_json(folder / names.GATE, first)
        run.store.mark(stage, folder / names.GATE, first_file)
    return run.kept(k)


def _decided(run: Run, k: int) -> Decision:
    """Compare the results of iteration `k` with those of its parent, or of the best checkpoint kept so far."""
    settings, rule = run.config.evaluate, run.config.gate
    results = [r for r in run.results() if r.suite == settings.split and r.mode == "internalized"]
    by_iteration = {number: [r for r in results if r.iteration == number] for number in range(k + 1)}
    rival = run.kept(k - 1).iteration
    kept = {run.kept(n).iteration for n in range(k)}
    means = {number: mean for number in kept if (mean := _mean(by_iteration[number])) is not None}
    if rule.against == "best" and means:
        rival = max(means, key=lambda number: (means[number], number))  # the latest of equals
    found = decide(by_iteration[rival], by_iteration[k], rule.rule, settings.resamples, run.config.seed)
    return found.model_copy(update={"rival": rival})


def _mean(results: Sequence[EvalResult]) -> float | None:
    """The mean success; None if nothing is scored."""
    scored = [result.success for result in results if result.success is not None]
    return fmean(scored) if scored else None


async def _confirmed(run: Run, candidate: Checkpoint, pool: ExperiencePool, suspected: Decision) -> Decision:
    """Play candidate and rival on further tasks, suite after suite, until it is known whether the candidate is worse.

    These tasks did not choose the rival, so its luck on the others does not count against the candidate.
    """
    assert suspected.rival is not None, "what is suspected was compared"
    k, rival, settings = candidate.iteration, suspected.rival, run.config.gate
    before, after = dict[str, float | None](), dict[str, float | None]()
    error, known = settings.error / run.config.iterations, None  # all iterations together: gate.error
    for suite in run.plan.again:
        before |= await _scores(run, run.checkpoint(rival), suite, pool, k)
        after |= await _scores(run, candidate, suite, pool, k)
        known = worse(*won_and_lost(before, after), error)
        if known is not None:
            break
    change = paired_difference(before, after, run.config.evaluate.resamples, run.config.seed)
    won, lost = won_and_lost(before, after)
    words = {True: "worse", False: "no worse", None: "not known to be worse"}[known]
    reason = f"{suspected.reason}; on {len(after)} further tasks {words}: {won} won, {lost} lost"
    return Decision(promote=known is not True, reason=reason, interval=change, rival=rival)


async def _scores(run: Run, policy: Checkpoint, suite: str, pool: ExperiencePool, k: int) -> dict[str, float | None]:
    """Each task of the suite without experience; played now unless an earlier iteration has played this policy."""
    stage = Stage(iteration=k, kind="evaluate", suite=suite, mode="internalized", policy=policy.iteration)
    if not any(run.store.done(stage.model_copy(update={"iteration": n})) for n in range(k)):
        await run.evaluate(policy, (suite,), ("internalized",), pool, k)
    of = (suite, "internalized", policy.iteration)
    return by_task(r for r in run.results() if (r.suite, r.mode, r.iteration) == of)


async def _second(
    run: Run, policy: Checkpoint, candidate: Checkpoint, pool: ExperiencePool, first: Decision
) -> Decision:
    """Make and measure a milder candidate: trained with a smaller step, or averaged with the parent."""
    k = candidate.iteration
    folder, stage = run.store.iteration(k), Stage(iteration=k, kind="second")
    if not run.store.done(stage):
        first_results = folder / names.FIRST_EVALUATIONS
        if not first_results.exists():
            write_jsonl(first_results, read_jsonl(folder / names.EVALUATIONS, EvalResult))
        if run.config.gate.rule == "average":
            out = f"{names.iteration(k)}/{names.SECOND_WEIGHTS}"
            milder = await run.backends.trainer.average(policy, candidate, run.store.path, out)
        else:
            examples = read_jsonl(folder / names.EXAMPLES, DistillExample)
            shrink = run.config.gate.shrink
            milder, summary = await train(run, policy, examples, k, names.SECOND_WEIGHTS, shrink=shrink)
            write_json(folder / names.SECOND_TRAINING, summary)
        run.store.replace_json(stage, folder / names.CHECKPOINT, milder)
        wrote = (names.FIRST_EVALUATIONS, names.SECOND_TRAINING, names.CHECKPOINT, names.SECOND_WEIGHTS)
        run.store.mark(stage, *(folder / name for name in wrote))
    await run.evaluate(run.checkpoint(k), (run.config.evaluate.split,), names.MODES, pool, k, candidate=2)
    return _decided(run, k).model_copy(update={"first": first})
