"""Intervals and tests for scores of tasks: bootstrap means, paired differences, sign test, detectable effect.

The unit is always the task: attempts of one task are averaged first (`task_means`), and the
bootstrap draws tasks, or runs and tasks when there are several runs. A task without a score (None) is
left out and counted, never 0. Left out: anything parametric, and scipy. What must not change: a
difference is *after minus before*, and the same values, seed and resamples give the same interval.

Percentile bootstrap intervals are too narrow below about ten tasks and have no width when all values are equal. A mean
of successes has Wilson's interval instead where all tasks are won or all lost; a difference keeps the bootstrap's, so
read it together with `sign_test`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from internalize.records import Record

Scores = Mapping[str, float | None]  # task id -> score, None = unscored
LEAST_TASKS = 6  # five that all got worse still have an exact two-sided p of 0.0625
LEVEL, POWER = 0.05, 0.8  # of what is called detectable
CELLS_A_CHUNK = 4_000_000  # floats drawn together, so that a million resamples fit in memory


class Interval(Record):
    """A mean with its bootstrap interval, over `n` tasks; `left_out` had no score (or no partner)."""

    mean: float
    low: float
    high: float
    n: int
    left_out: int = 0

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero."""
        return self.low > 0 or self.high < 0


class Share(Record):
    """A ratio of two means over `n` tasks; without bounds where the sample leaves open whether there is a whole."""

    share: float
    low: float | None
    high: float | None
    n: int


def task_means(scores: Iterable[tuple[str, float | None]]) -> dict[str, float | None]:
    """Mean of the scored attempts of each task; None where no attempt was scored."""
    attempts: dict[str, list[float]] = {}
    for task, score in scores:
        scored = attempts.setdefault(task, [])
        if score is not None:
            scored.append(score)
    return {task: math.fsum(scored) / len(scored) if scored else None for task, scored in attempts.items()}


def bootstrap_mean(
    values: Iterable[float | None], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """Mean of the scored successes and its interval, as `mean_runs`; None when nothing is scored."""
    return mean_runs([{str(i): value for i, value in enumerate(values)}], resamples, seed, level)


def paired_difference(
    before: Scores, after: Scores, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """Mean of after minus before over tasks scored in both; None when there is no such task."""
    return paired_difference_runs([before], [after], resamples, seed, level)


def mean_runs(runs: Sequence[Scores], resamples: int = 2000, seed: int = 0, level: float = 0.95) -> Interval | None:
    """Mean over runs (seeds) of each run's mean success over tasks.

    Each resample draws runs, and one set of tasks shared by all of them: runs measured on the same tasks
    share the luck of the tasks. `n` counts distinct scored tasks, `left_out` tasks no run scored.
    Where every score is 0, or every one 1, all resamples are alike: the bounds are `wilson`'s for `n` tasks, as of one
    run, since runs that share their tasks know no more of other tasks.
    """
    interval = _over_runs(runs, resamples, seed, level)
    scored = {score for run in runs for score in run.values() if score is not None}
    if interval is None or scored not in ({0.0}, {1.0}):
        return interval
    counted = wilson(interval.n if scored == {1.0} else 0, interval.n, level)
    return counted and counted.model_copy(update={"left_out": interval.left_out})


def paired_difference_runs(
    before: Sequence[Scores], after: Sequence[Scores], resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """`paired_difference` over several runs; `before[i]` and `after[i]` are of one run."""
    # Without Wilson's bounds where all differences are 0, or all 1: he counts successes, and a difference may as well
    # be negative. No width says truly that every task changed alike. What could have been missed is said by
    # `detectable_difference`, and `sign_test` keeps a few equal gains from being proof.
    runs = [differences(b, a) for b, a in zip(before, after, strict=True)]
    return _over_runs(runs, resamples, seed, level)


def difference_of_means(
    before: Scores, after: Scores, resamples: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval | None:
    """Mean of `after` minus mean of `before`, where a task may be scored on one side only; None if a side is empty.

    A resample draws tasks once for both sides, so tasks scored on both are paired. `n` counts tasks scored on either
    side; draws without any task of a side are left out.
    """
    table_RT = _table([before, after])
    if len(table_RT) < 2:
        return None
    low, mean, high = _difference_quantiles(table_RT, resamples, seed, (1 - level) / 2)
    return Interval(mean=mean, low=min(mean, low), high=max(mean, high), n=table_RT.shape[1])


def ratio_of_means(
    whole: Sequence[Scores],
    part: Sequence[Scores],
    least: float = 0.0,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Share | None:
    """Mean of `part` over mean of `whole`, run by run on the same tasks; None when `whole` is below `least`.

    Bounds are those of a bootstrap that draws runs and tasks for both means together. A draw in which the whole is not
    positive says nothing of the share; there are no bounds when such draws are as many as an interval may leave out.
    """
    whole_RT, part_RT = _table(whole), _table(part)
    if whole_RT.size == 0:
        return None
    total, kept = (float(np.mean(np.nanmean(table, axis=1))) for table in (whole_RT, part_RT))
    if total <= 0 or total < least:
        return None
    # The same seed and the same gaps: both are of the same draws.
    whole_B, part_B = (_replicates(table, resamples, seed) for table in (whole_RT, part_RT))
    sure_B = whole_B > 0
    share, n, tail = kept / total, whole_RT.shape[1], (1 - level) / 2
    if sure_B.mean() < 1 - tail:
        return Share(share=share, low=None, high=None, n=n)
    low, high = np.quantile(part_B[sure_B] / whole_B[sure_B], [tail, 1 - tail])
    return Share(share=share, low=min(share, float(low)), high=max(share, float(high)), n=n)


def differences(before: Scores, after: Scores) -> dict[str, float | None]:
    """After minus before of every task in either; None where one side is missing or unscored."""
    result: dict[str, float | None] = {}
    for task in [*before, *(task for task in after if task not in before)]:
        b, a = before.get(task), after.get(task)
        result[task] = None if a is None or b is None else a - b
    return result


def won_and_lost(before: Scores, after: Scores) -> tuple[int, int]:
    """Tasks whose score rose and tasks whose score fell."""
    changes = [change for change in differences(before, after).values() if change is not None]
    return sum(change > 0 for change in changes), sum(change < 0 for change in changes)


def sign_test(won: int, lost: int) -> float:
    """Exact two-sided p that `won` and `lost` are equally likely: McNemar's test when scores are 0 or 1."""
    n = won + lost
    tail = sum(math.comb(n, i) for i in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / (1 << n))


def fisher_greater(won: int, n: int, other_won: int, other_n: int) -> float:
    """Exact one-sided p that `won` of `n` against `other_won` of `other_n` is chance (Fisher 1935)."""
    successes, ways = won + other_won, math.comb(n + other_n, won + other_won)
    tail = sum(math.comb(n, i) * math.comb(other_n, successes - i) for i in range(won, min(n, successes) + 1))
    return tail / ways


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: the family-wise error holds for any dependence (Holm 1979)."""
    adjusted = [0.0] * len(p_values)
    reached = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        reached = max(reached, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = reached
    return adjusted


def wilson(successes: int, n: int, level: float = 0.95) -> Interval | None:
    """A counted share and its score interval (Wilson 1927, without continuity correction); None for n = 0.

    Unlike the bootstrap it has width where all or none succeed.
    """
    if n < 1:
        return None
    z = statistics.NormalDist().inv_cdf((1 + level) / 2)
    p, shrink = successes / n, 1 + z * z / n
    centre = (p + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return Interval(mean=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def minimum_detectable(n: int, p: float, comparisons: int = 1) -> float:
    """Difference in success that `n` tasks show with power 0.8 at level 0.05 / `comparisons` near success rate `p`.

    Normal approximation, before and after taken as independent (pairing only helps); p is drawn
    towards one half by one success and one failure, so that 0 and 1 do not promise certainty.
    """
    if n < 1:
        return 1.0
    smooth = (p * n + 1) / (n + 2)
    return min(1.0, _errors_to_see(comparisons) * math.sqrt(2 * smooth * (1 - smooth) / n))


def detectable_difference(
    before: Sequence[Scores], after: Sequence[Scores], comparisons: int = 1, resamples: int = 2000, seed: int = 0
) -> float:
    """Paired difference that such runs and tasks show with power 0.8, as one of `comparisons` under Holm's method.

    The standard error of the bootstrap behind `paired_difference_runs` times the quantiles for level
    0.05 / `comparisons` and the power. That is Holm's first step, the strictest: conservative for the others.

    Too small where: there is one run (how runs vary is not in it) or few (R runs hold (R - 1) / R of that variance);
    the sign test, which a verdict asks for too, sees less than the mean does; or a real difference would spread the
    tasks more than the one at hand. Where fewer tasks changed than the sign test needs at all, the spread is next to
    nothing and says nothing: the answer is then not below `minimum_detectable`.
    """
    table_RT = _table([differences(b, a) for b, a in zip(before, after, strict=True)])
    if table_RT.size == 0:
        return 1.0
    least = _errors_to_see(comparisons) * float(np.std(_replicates(table_RT, resamples, seed)))
    changed = int(np.count_nonzero(np.nanmean(table_RT, axis=0)))
    if sign_test(changed, 0) > LEVEL / comparisons:
        rate = statistics.fmean(score for run in before for score in run.values() if score is not None)
        least = max(least, minimum_detectable(table_RT.shape[1], rate, comparisons))
    return min(1.0, least)


def _errors_to_see(comparisons: int) -> float:
    """How many standard errors a difference must be away from zero."""
    normal = statistics.NormalDist()
    return normal.inv_cdf(1 - LEVEL / (2 * comparisons)) + normal.inv_cdf(POWER)


def _table(runs: Sequence[Scores]) -> NDArray[np.float64]:
    """Scores as (R, T), NaN where a run has none; runs and tasks without any score are dropped."""
    tasks = {task: None for run in runs for task in run}
    rows = [[math.nan if (score := run.get(task)) is None else score for task in tasks] for run in runs]
    table = np.array(rows, dtype=np.float64).reshape(len(runs), len(tasks))
    if np.isinf(table).any():
        raise ValueError("a score is infinite")
    scored = ~np.isnan(table)
    return table[scored.any(axis=1)][:, scored.any(axis=0)]


def _over_runs(runs: Sequence[Scores], resamples: int, seed: int, level: float) -> Interval | None:
    """Mean over runs of means over tasks, with the bootstrap's interval; scores may be differences."""
    table_RT, tasks = _table(runs), len({task for run in runs for task in run})
    if table_RT.size == 0:
        return None
    mean = float(np.mean(np.nanmean(table_RT, axis=1)))
    tail = (1 - level) / 2
    low, high = np.quantile(_replicates(table_RT, resamples, seed), [tail, 1 - tail])
    n = table_RT.shape[1]
    # A mean is a sum in another order than its replicates: keep it inside an interval of no width.
    return Interval(mean=mean, low=min(mean, float(low)), high=max(mean, float(high)), n=n, left_out=tasks - n)


def _replicates(table_RT: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """Bootstrap means, (B,); suffixes: _R runs, _T tasks, _B resamples.

    A drawn run without a score among the drawn tasks is left out of its mean.
    """
    runs, tasks = table_RT.shape
    random = np.random.default_rng(seed)
    scored_RT = ~np.isnan(table_RT)
    filled_RT = np.where(scored_RT, table_RT, 0.0)
    rows = max(1, CELLS_A_CHUNK // table_RT.size)
    means = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        drawn_BT = random.integers(0, tasks, (count, tasks))
        drawn_BR = random.integers(0, runs, (count, runs))
        total_BR = np.take_along_axis(filled_RT[:, drawn_BT].sum(axis=2).T, drawn_BR, axis=1)
        n_BR = np.take_along_axis(scored_RT[:, drawn_BT].sum(axis=2).T, drawn_BR, axis=1)
        means.append(_mean_of_means(total_BR, n_BR))
    replicates = np.concatenate(means)
    return replicates[~np.isnan(replicates)]


def _difference_quantiles(
    table_RT: NDArray[np.float64], resamples: int, seed: int, tail: float
) -> tuple[float, float, float]:
    """Low quantile, value, high quantile of the second row's mean minus the first's; tasks drawn for both rows."""
    tasks = table_RT.shape[1]
    random = np.random.default_rng(seed)
    scored_RT = ~np.isnan(table_RT)
    filled_RT = np.where(scored_RT, table_RT, 0.0)
    rows = max(1, CELLS_A_CHUNK // (2 * tasks))
    found = []
    for start in range(0, resamples, rows):
        drawn_BT = random.integers(0, tasks, (min(rows, resamples - start), tasks))
        n_RB = scored_RT[:, drawn_BT].sum(axis=2)
        mean_RB = filled_RT[:, drawn_BT].sum(axis=2) / np.maximum(n_RB, 1)
        found.append((mean_RB[1] - mean_RB[0])[(n_RB > 0).all(axis=0)])
    low, high = np.quantile(np.concatenate(found), [tail, 1 - tail])
    before, after = np.nanmean(table_RT, axis=1)
    return float(low), float(after - before), float(high)


def _mean_of_means(total_BR: NDArray[np.float64], n_BR: NDArray[np.int64]) -> NDArray[np.float64]:
    run_means_BR = total_BR / np.maximum(n_BR, 1)
    alive_B = (n_BR > 0).sum(axis=1)
    return np.where(alive_B > 0, run_means_BR.sum(axis=1) / np.maximum(alive_B, 1), math.nan)
