"""Turns each trajectory into an evaluation result, and aggregates results into one line for each suite and mode.

Unscored results are excluded from every mean and counted separately. Comparisons are paired by task.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from pydantic import Field, field_validator

from internalize.records import EvalResult, Mode, Record, Trajectory
from internalize.records.messages import Share as Fraction

from .stats import Interval, Share, bootstrap_mean, differences, paired_difference, ratio_of_means, task_means

Group = tuple[int, str, Mode, str, str | None]  # iteration, suite, mode, checkpoint, pool


class ActionSets(Protocol):
    """The part of an environment that `eval_result` needs; every `Environment` has it."""

    @property
    def evidence_actions(self) -> frozenset[str]:
        """Names of the actions that gather evidence."""
        ...

    @property
    def final_actions(self) -> frozenset[str]:
        """Names of the actions that end an episode."""
        ...


class SuiteMetrics(Record):
    """One line of metrics.jsonl: one suite in one mode after `iteration` updates.

    Rates and means are over scored results. `invalid_rate` is invalid steps among all steps; `nll` is
    weighted by tokens (nats per token); `premature_rate` is among all scored episodes, not only answered ones.
    """

    iteration: int
    suite: str
    mode: Mode
    checkpoint: str
    pool_version: str | None
    success: Interval | None  # None = no scored result
    results: int  # scored results; success.n counts their tasks
    unscored: int
    premature_rate: Fraction = 0.0
    turns: float = 0.0
    action_tokens: float = 0.0
    invalid_rate: Fraction = 0.0
    truncated_rate: Fraction = 0.0
    nll: float = 0.0
    families: dict[str, Interval] = Field(default_factory=dict)
    gain_over_starter: Interval | None = None  # internalized lines: success minus that of the starter
    retained: Share | None = None  # internalized lines
    in_context_gain: Interval | None = None  # in-context lines: success minus that of the checkpoint without the pool

    @field_validator("retained", mode="before")
    @classmethod
    def _without_old_definition(cls, value: object) -> object:
        """Drops the value of earlier versions, which was defined as a share of the gain over the starter."""
        return None if isinstance(value, float) or (isinstance(value, dict) and "share" in value) else value


def figures(line: SuiteMetrics) -> dict[str, float]:
    """The numbers of a line by names such as "dev/internalized/success", for dashboards.

    Intervals give their ends too, as "success low" and "success high".
    """
    numbers: dict[str, float] = {}
    for name in line.__class__.model_fields.keys() - {"iteration"}:
        value = getattr(line, name)
        if isinstance(value, Interval | Share):
            numbers |= {f"{name} low": value.low, f"{name} high": value.high}
            value = value.mean if isinstance(value, Interval) else value.value
        if isinstance(value, int | float):
            numbers[name] = float(value)
    families = {f"success of {name}": found.mean for name, found in line.families.items()}
    return {f"{line.suite}/{line.mode}/{name}": value for name, value in {**numbers, **families}.items()}


def eval_result(trajectory: Trajectory, suite: str, mode: Mode, environment: ActionSets) -> EvalResult:
    """The result of one episode. It is premature if a final action comes before any evidence-gathering action."""
    steps = trajectory.steps
    nats = [-logprob for step in steps for logprob in step.logprobs[: step.forced[0]] + step.logprobs[step.forced[1] :]]
    return EvalResult(
        suite=suite,
        mode=mode,
        iteration=trajectory.iteration,
        checkpoint=trajectory.checkpoint,
        pool_version=trajectory.pool_version,
        task_id=trajectory.task_id,
        family=trajectory.family,
        success=None if trajectory.failure is not None else trajectory.score,
        premature=_premature(trajectory, environment),
        turns=len(steps),
        action_tokens=sum(len(step.token_ids) for step in steps),
        invalid=sum(not step.calls for step in steps),
        truncated=trajectory.termination in {"max_steps", "context_full"},
        nll=math.fsum(nats) / len(nats) if nats else 0.0,
    )


def kind_of(reason: str) -> str:
    """The kind of a reason why something is unscored: its words before the first colon."""
    return reason.partition(":")[0].strip()[:60] or "no reason given"


def by_kind(counts: Mapping[str, int]) -> str:
    """How often each kind occurs, most frequent first: "2 refused, 1 empty"."""
    return ", ".join(f"{count} {kind}" for kind, count in Counter(counts).most_common())


def by_task(results: Iterable[EvalResult]) -> dict[str, float | None]:
    """Success of each task, averaged over its scored attempts."""
    return task_means((result.task_id, result.success) for result in results)


def select(
    results: Iterable[EvalResult], *, suite: str, mode: Mode, iteration: int | None = None
) -> tuple[EvalResult, ...]:
    """Results of one suite and mode, in order; `iteration` None = of all iterations."""
    return tuple(r for r in results if (r.suite, r.mode) == (suite, mode) and iteration in {None, r.iteration})


def gathered(folders: Iterable[Sequence[EvalResult]]) -> tuple[EvalResult, ...]:
    """The results of all iterations in order; a group that was measured again replaces the earlier one."""
    groups: dict[Group, list[EvalResult]] = {}
    for results in folders:
        new = grouped(results)
        groups = {key: group for key, group in groups.items() if key not in new} | new
    return tuple(result for group in groups.values() for result in group)


def suite_metrics(results: Sequence[EvalResult], resamples: int = 2000, seed: int = 0) -> SuiteMetrics:
    """Aggregate the results of one iteration, suite, mode, checkpoint and pool.

    Raises ValueError unless the results belong to exactly one group.
    """
    groups = {group_of(result) for result in results}
    if len(groups) != 1:
        raise ValueError(f"results of {len(groups)} groups where one was expected")
    first = results[0]
    scored = [result for result in results if result.success is not None]
    success = bootstrap_mean(by_task(scored).values(), resamples, seed)
    return SuiteMetrics(
        iteration=first.iteration,
        suite=first.suite,
        mode=first.mode,
        checkpoint=first.checkpoint,
        pool_version=first.pool_version,
        success=success and success.model_copy(update={"left_out": len(by_task(results)) - success.n}),
        results=len(scored),
        unscored=len(results) - len(scored),
        premature_rate=_mean(r.premature for r in scored),
        turns=_mean(r.turns for r in scored),
        action_tokens=_mean(r.action_tokens for r in scored),
        invalid_rate=_ratio(sum(r.invalid for r in scored), sum(r.turns for r in scored)),
        truncated_rate=_mean(r.truncated for r in scored),
        nll=_ratio(sum(r.nll * r.action_tokens for r in scored), sum(r.action_tokens for r in scored)),
        families=_families(scored, resamples, seed),
    )


def group_of(measured: EvalResult | SuiteMetrics) -> Group:
    """The group of a result or of a line of metrics."""
    return measured.iteration, measured.suite, measured.mode, measured.checkpoint, measured.pool_version


def own_line(lines: Iterable[SuiteMetrics], suite: str, mode: Mode, iteration: int) -> SuiteMetrics | None:
    """The line of one suite and mode after `iteration` updates, for the checkpoint of that iteration."""
    candidates = [line for line in lines if (line.suite, line.iteration) == (suite, iteration)]
    trained = {line.checkpoint for line in candidates if line.mode == "internalized"}
    of_mode = (line for line in candidates if line.mode == mode)
    return next((line for line in of_mode if line.checkpoint in trained or not trained), None)


def grouped(results: Iterable[EvalResult]) -> dict[Group, list[EvalResult]]:
    """Results by group, in order of first appearance."""
    groups: dict[Group, list[EvalResult]] = {}
    for result in results:
        groups.setdefault(group_of(result), []).append(result)
    return groups


def iteration_metrics(
    results: Sequence[EvalResult], earlier: Sequence[EvalResult] = (), resamples: int = 2000, seed: int = 0
) -> tuple[SuiteMetrics, ...]:
    """One line for each suite, mode, checkpoint and pool in `results`, compared with `earlier` iterations."""
    known = (*earlier, *results)
    return tuple(line_of(group, known, resamples, seed) for group in grouped(results).values())


def line_of(group: Sequence[EvalResult], known: Sequence[EvalResult], resamples: int, seed: int) -> SuiteMetrics:
    """The metrics of one group, compared with the `known` results of its own and of earlier iterations."""
    line = suite_metrics(group, resamples, seed)
    if line.mode == "in_context":
        gain = in_context_gain(known, line.suite, (line.iteration, line.checkpoint), line.pool_version, resamples, seed)
        return line.model_copy(update={"in_context_gain": gain})
    starter = by_task(select(known, suite=line.suite, mode="internalized", iteration=0))
    gain = paired_difference(starter, by_task(group), resamples, seed) if line.iteration else None
    share = retained([(known, line.iteration)], line.suite, resamples, seed) if line.iteration else None
    return line.model_copy(update={"gain_over_starter": gain, "retained": share})


def in_context_gain(
    results: Sequence[EvalResult],
    suite: str,
    policy: tuple[int, str],
    pool_version: str | None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Success with this pool minus success without a pool, of one policy (iteration and checkpoint), paired by task.

    None if it was not measured.
    """
    of_policy = [result for result in results if (result.iteration, result.checkpoint) == policy]
    without = by_task(select(of_policy, suite=suite, mode="internalized"))
    with_pool = by_task(r for r in select(of_policy, suite=suite, mode="in_context") if r.pool_version == pool_version)
    return paired_difference(without, with_pool, resamples, seed)


def retained(
    runs: Sequence[tuple[Sequence[EvalResult], int]], suite: str, resamples: int = 2000, seed: int = 0
) -> Share | None:
    """Share of a pool's in-context gain that training moved into the weights.

    (internalized after - internalized before) / (in context before - internalized before), as a ratio of means over
    the tasks scored in all three, and over `runs`: (results, iteration) for each seed. "Before" is the checkpoint that
    was then trained, so that a training without effect retains 0. None if this was not measured, or if the interval of
    the in-context gain is not above zero.
    """
    added, moved = [], []
    for results, iteration in runs:
        shown = in_context_before(results, suite, iteration)
        trained = {(result.iteration, result.checkpoint) for result in shown}
        plain = select(results, suite=suite, mode="internalized")
        before = by_task(result for result in plain if (result.iteration, result.checkpoint) in trained)
        in_context = differences(before, by_task(shown))
        internalized = differences(before, by_task(result for result in plain if result.iteration == iteration))
        tasks = [task for task in before if None not in {in_context.get(task), internalized.get(task)}]
        added.append({task: in_context[task] for task in tasks})
        moved.append({task: internalized[task] for task in tasks})
    return ratio_of_means(added, moved, resamples, seed)


def in_context_before(results: Sequence[EvalResult], suite: str, iteration: int) -> tuple[EvalResult, ...]:
    """Results with the pool of `iteration`, of the last policy that was measured before it was trained on that pool."""
    measured = select(results, suite=suite, mode="in_context")
    pool = next((r.pool_version for r in measured if r.iteration == iteration), None)
    older = [r for r in measured if pool is not None and r.pool_version == pool and r.iteration < iteration]
    return tuple(r for r in older if r.iteration == older[-1].iteration)


def _families(scored: Sequence[EvalResult], resamples: int, seed: int) -> dict[str, Interval]:
    families = {}
    for family in sorted({result.family for result in scored if result.family}):
        means = by_task(result for result in scored if result.family == family)
        interval = bootstrap_mean(means.values(), resamples, seed)
        if interval is not None:
            families[family] = interval
    return families


def _premature(trajectory: Trajectory, environment: ActionSets) -> bool:
    for call in (call for step in trajectory.steps for call in step.calls):
        if call.name in environment.evidence_actions:
            return False
        if call.name in environment.final_actions:
            return True
    return False


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return _ratio(math.fsum(listed), len(listed))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
