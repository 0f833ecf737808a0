"""From trajectories to one evaluation result each, and from results to one line a suite and mode.

An unscored result is left out of every mean and counted; comparisons are paired by task.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from pydantic import Field, field_validator

from internalize.records import EvalResult, Mode, Record, Trajectory

from .stats import Interval, Share, bootstrap_mean, differences, paired_difference, ratio_of_means, task_means

Group = tuple[int, str, Mode, str, str | None]  # iteration, suite, mode, checkpoint, pool


class ActionSets(Protocol):
    """What judging needs of an environment (every `Environment` fits)."""

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
    weighted by tokens (nats a token); `premature_rate` is among all scored episodes, not only answered ones.
    """

    iteration: int
    suite: str
    mode: Mode
    checkpoint: str
    pool_version: str | None
    success: Interval | None  # None: nothing scored
    results: int  # scored results; success.n counts their tasks
    unscored: int
    premature_rate: float = 0.0
    turns: float = 0.0
    action_tokens: float = 0.0
    invalid_rate: float = 0.0
    truncated_rate: float = 0.0
    nll: float = 0.0
    families: dict[str, Interval] = Field(default_factory=dict)
    gain_over_starter: Interval | None = None  # internalized lines: minus the starter's
    retained: Share | None = None  # internalized lines
    in_context_gain: Interval | None = None  # in-context lines: minus the same checkpoint without the pool

    @field_validator("retained", mode="before")
    @classmethod
    def _of_the_checkpoint_before(cls, value: object) -> object:
        """Runs of earlier versions hold a share of the gain over the starter: it is not shown as this one."""
        return None if isinstance(value, float) or (isinstance(value, dict) and "share" in value) else value


def figures(line: SuiteMetrics) -> dict[str, float]:
    """The numbers of a line by names such as "dev/internalized/success", for dashboards."""
    numbers: dict[str, float] = {}
    for name in line.__class__.model_fields.keys() - {"iteration"}:
        value = getattr(line, name)
        value = value.mean if isinstance(value, Interval) else value.value if isinstance(value, Share) else value
        if isinstance(value, int | float):
            numbers[name] = float(value)
    families = {f"success of {name}": found.mean for name, found in line.families.items()}
    return {f"{line.suite}/{line.mode}/{name}": value for name, value in {**numbers, **families}.items()}


def eval_result(trajectory: Trajectory, suite: str, mode: Mode, environment: ActionSets) -> EvalResult:
    """Judge one episode. Premature: a final action with no evidence-gathering action before it."""
    steps = trajectory.steps
    nats = [-logprob for step in steps for logprob in step.logprobs]
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


def by_task(results: Iterable[EvalResult]) -> dict[str, float | None]:
    """Success of each task, its scored attempts averaged."""
    return task_means((result.task_id, result.success) for result in results)


def select(
    results: Iterable[EvalResult], *, suite: str, mode: Mode, iteration: int | None = None
) -> tuple[EvalResult, ...]:
    """Results of one suite and mode, in order; `iteration` None = of all iterations."""
    return tuple(r for r in results if (r.suite, r.mode) == (suite, mode) and iteration in {None, r.iteration})


def gathered(folders: Iterable[Sequence[EvalResult]]) -> tuple[EvalResult, ...]:
    """Results of all iterations' folders, in order; of a policy measured twice with one pool only the later ones."""
    groups: dict[Group, list[EvalResult]] = {}
    for results in folders:
        own = grouped(results)
        groups = {key: group for key, group in groups.items() if key not in own} | own
    return tuple(result for group in groups.values() for result in group)


def suite_metrics(results: Sequence[EvalResult], resamples: int = 2000, seed: int = 0) -> SuiteMetrics:
    """Aggregate the results of one iteration, suite, mode, checkpoint and pool.

    Raises ValueError when they are not of one group, or when there are none.
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
    """What a result belongs to, or a line is of."""
    return measured.iteration, measured.suite, measured.mode, measured.checkpoint, measured.pool_version


def own_line(lines: Iterable[SuiteMetrics], suite: str, mode: Mode, iteration: int) -> SuiteMetrics | None:
    """The line of one suite and mode after `iteration` updates, on that iteration's own checkpoint."""
    found = [line for line in lines if (line.suite, line.iteration) == (suite, iteration)]
    own = {line.checkpoint for line in found if line.mode == "internalized"}
    return next((line for line in found if line.mode == mode and (line.checkpoint in own or not own)), None)


def grouped(results: Iterable[EvalResult]) -> dict[Group, list[EvalResult]]:
    """Results by what they measure, in order."""
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
    """The line of one group, compared with what is `known` of its own and of earlier iterations."""
    line = suite_metrics(group, resamples, seed)
    if line.mode == "in_context":
        gain = in_context_gain(known, line.suite, (line.iteration, line.checkpoint), line.pool_version, resamples, seed)
        return line.model_copy(update={"in_context_gain": gain})
    starter = by_task(select(known, suite=line.suite, mode="internalized", iteration=0))
    gain = paired_difference(starter, by_task(group), resamples, seed) if line.iteration else None
    kept = retained([(known, line.iteration)], line.suite, resamples, seed) if line.iteration else None
    return line.model_copy(update={"gain_over_starter": gain, "retained": kept})


def in_context_gain(
    results: Sequence[EvalResult],
    suite: str,
    policy: tuple[int, str],
    pool_version: str | None,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval | None:
    """Success with this pool minus without any, of one policy (its iteration and checkpoint), paired by task.

    None if not measured.
    """
    of = [result for result in results if (result.iteration, result.checkpoint) == policy]
    without = by_task(select(of, suite=suite, mode="internalized"))
    with_pool = by_task(r for r in select(of, suite=suite, mode="in_context") if r.pool_version == pool_version)
    return paired_difference(without, with_pool, resamples, seed)


def retained(
    runs: Sequence[tuple[Sequence[EvalResult], int]], suite: str, resamples: int = 2000, seed: int = 0
) -> Share | None:
    """Share of what a pool added in the prompt that the training on it moved into the weights.

    (internalized after - internalized before) / (in context before - internalized before), a ratio of means over the
    tasks scored in all three and over runs: (results, iteration) of a seed each. "Before" is the checkpoint that was
    then trained, so that a training that changes nothing retains 0. None where that was not measured, or where the
    interval of what the pool added is not above zero.
    """
    added, moved = [], []
    for results, iteration in runs:
        shown = in_context_before(results, suite, iteration)
        trained = {(result.iteration, result.checkpoint) for result in shown}
        plain = select(results, suite=suite, mode="internalized")
        before = by_task(result for result in plain if (result.iteration, result.checkpoint) in trained)
        gave = differences(before, by_task(shown))
        kept = differences(before, by_task(result for result in plain if result.iteration == iteration))
        both = [task for task in before if None not in {gave.get(task), kept.get(task)}]
        added.append({task: gave[task] for task in both})
        moved.append({task: kept[task] for task in both})
    return ratio_of_means(added, moved, resamples, seed)


def in_context_before(results: Sequence[EvalResult], suite: str, iteration: int) -> tuple[EvalResult, ...]:
    """With the pool of `iteration`, before the policy was trained on it: of several such policies the last measured."""
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
