import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from internalize.evaluation.stats import (
    bootstrap_mean,
    detectable_difference,
    differences,
    fisher_greater,
    holm,
    mean_runs,
    minimum_detectable,
    paired_difference,
    paired_difference_runs,
    ratio_of_means,
    sign_test,
    stratified_difference,
    stratified_greater,
    task_means,
    wilson,
    won_and_lost,
)

SCORES = st.dictionaries(st.sampled_from("abcdefgh"), st.none() | st.floats(0, 1), max_size=8)


def test_mean_and_counts_leave_out_unscored():
    interval = bootstrap_mean([1.0, 0.0, None, 1.0, 1.0])
    assert interval is not None
    assert (interval.mean, interval.n, interval.left_out) == (0.75, 4, 1)
    assert 0 <= interval.low < 0.75 < interval.high <= 1


def test_nothing_scored_is_no_interval():
    assert bootstrap_mean([]) is None
    assert bootstrap_mean([None, None]) is None
    assert paired_difference({"a": 1.0}, {"b": 1.0}) is None
    assert mean_runs([]) is None


def test_interval_of_a_coin_is_near_the_normal_one():
    interval = bootstrap_mean([0.0, 1.0] * 50, resamples=4000)
    assert interval is not None
    assert interval.low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert interval.high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)


def test_same_seed_same_interval_and_chunks_do_not_matter(monkeypatch):
    values = [0.0, 0.3, 1.0, 0.9, 0.2]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, resamples=200, seed=3) != bootstrap_mean(values, resamples=200, seed=4)
    monkeypatch.setattr("internalize.evaluation.stats.CELLS_A_CHUNK", 10)
    small = bootstrap_mean(values, resamples=200)
    assert small is not None
    assert small.mean == pytest.approx(0.48)
    assert 0 <= small.low < small.mean < small.high <= 1


def test_pairing_removes_what_tasks_share():
    """Every task gains exactly 0.1, however different the tasks are: the interval has no width."""
    before = {str(i): i / 20 for i in range(18)}
    after = {task: score + 0.1 for task, score in before.items()}
    interval = paired_difference(before, after)
    assert interval is not None
    assert interval.mean == pytest.approx(0.1)
    assert interval.high - interval.low < 1e-9
    assert interval.excludes_zero


def test_pairs_by_task_and_counts_those_without_partner():
    before = {"a": 0.0, "b": 1.0, "c": None, "d": 0.0}
    after = {"b": 1.0, "a": 1.0, "c": 1.0, "e": 1.0}
    assert differences(before, after) == {"a": 1.0, "b": 0.0, "c": None, "d": None, "e": None}
    interval = paired_difference(before, after)
    assert interval is not None
    assert (interval.mean, interval.n, interval.left_out) == (0.5, 2, 3)


def test_attempts_are_averaged_first_and_unscored_attempts_are_not_zero():
    scores = [("a", 1.0), ("a", 0.0), ("b", None), ("b", 1.0), ("c", None)]
    assert task_means(scores) == {"a": 0.5, "b": 1.0, "c": None}


def test_runs_that_disagree_widen_the_interval():
    """Within a run all tasks agree, so everything uncertain is between runs: the scores are not all the same."""
    good, bad = dict.fromkeys("abcd", 1.0), dict.fromkeys("abcd", 0.0)
    interval = mean_runs([good, bad])
    assert interval is not None
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.5, 0.0, 1.0, 4)


def test_runs_on_the_same_tasks_do_not_multiply_the_tasks():
    """Five equal runs of 20 tasks know no more about tasks than one run does."""
    run = {str(i): float(i % 2) for i in range(20)}
    one, five = mean_runs([run]), mean_runs([run] * 5)
    assert one is not None
    assert five is not None
    assert five.n == 20
    assert five.high - five.low == pytest.approx(one.high - one.low, abs=0.06)


def test_difference_over_runs_pairs_inside_each_run():
    before = [{"a": 0.0, "b": 0.0}, {"a": 1.0, "b": 0.0}]
    after = [{"a": 1.0, "b": 0.0}, {"a": 1.0, "b": 0.0}]
    interval = paired_difference_runs(before, after)
    assert interval is not None
    assert interval.mean == 0.25  # run means 0.5 and 0
    with pytest.raises(ValueError, match="argument"):
        paired_difference_runs(before, after[:1])


@pytest.mark.parametrize(("score", "low", "high"), [(1.0, 10 / (10 + 3.8415), 1.0), (0.0, 0.0, 3.8415 / 13.8415)])
def test_all_won_or_all_lost_leaves_open_what_other_tasks_would_do(score: float, low: float, high: float) -> None:
    """Wilson's bound at 0 or all of n is z^2 / (n + z^2) away: here z^2 = 3.8415 and n = 10."""
    run = {str(i): score for i in range(10)}
    for interval in (bootstrap_mean([*run.values(), None]), mean_runs([{**run, "x": None}] * 3)):
        assert interval is not None
        assert (interval.mean, interval.n, interval.left_out) == (score, 10, 1)
        assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    strict = bootstrap_mean(run.values(), level=0.99)
    assert strict is not None
    assert strict.high - strict.low > high - low


def test_wilson_stands_in_only_where_every_score_is_the_same_success() -> None:
    half = bootstrap_mean([0.5] * 10)
    assert half is not None
    assert (half.low, half.high) == (0.5, 0.5)  # no count of successes
    most = bootstrap_mean([1.0] * 9 + [0.0])
    assert most is not None
    assert most.low != pytest.approx(wilson(9, 10).low)  # type: ignore[union-attr]


@pytest.mark.parametrize(("before", "after", "change"), [(1.0, 1.0, 0.0), (0.0, 1.0, 1.0), (1.0, 0.0, -1.0)])
def test_a_difference_that_all_tasks_share_has_no_width(before: float, after: float, change: float) -> None:
    old, new = dict.fromkeys("abcdefgh", before), dict.fromkeys("abcdefgh", after)
    for interval in (paired_difference(old, new), paired_difference_runs([old] * 2, [new] * 2)):
        assert interval is not None
        assert (interval.low, interval.mean, interval.high) == (change, change, change)


def test_sign_test_by_hand():
    assert sign_test(0, 0) == 1
    assert sign_test(1, 0) == 1  # 2 * 1/2
    assert sign_test(5, 0) == 2 / 32
    assert sign_test(6, 0) == 2 / 64
    assert sign_test(2, 8) == pytest.approx(2 * (1 + 10 + 45) / 1024)
    assert sign_test(3, 3) == 1
    assert 0 < sign_test(3000, 2800) < 1  # exact integers, no overflow


def test_won_and_lost():
    assert won_and_lost({"a": 0, "b": 1, "c": 1, "d": None}, {"a": 1, "b": 0.5, "c": 1, "d": 1}) == (1, 1)


def test_minimum_detectable_by_hand():
    assert minimum_detectable(48, 0.5) == pytest.approx(2.80158 * math.sqrt(0.5 / 48), abs=1e-5)
    assert minimum_detectable(1000, 0.5) < minimum_detectable(100, 0.5)
    assert minimum_detectable(10, 0.0) > 0.2  # ten failures don't promise certainty
    assert minimum_detectable(0, 0.5) == minimum_detectable(1, 0.5) == 1


def test_what_can_be_seen_of_paired_tasks_by_hand() -> None:
    """Of 100 tasks 20 are won and 20 lost: variance 0.4, standard error sqrt(0.4 / 100)."""
    before = {str(i): float(20 <= i < 40) for i in range(100)}
    after = {str(i): float(i < 20) for i in range(100)}
    error = math.sqrt(0.4 / 100)
    assert detectable_difference([before], [after]) == pytest.approx((1.95996 + 0.84162) * error, rel=0.04)
    # 0.05 over five comparisons, two sides: the quantile at 0.995.
    assert detectable_difference([before], [after], 5) == pytest.approx((2.57583 + 0.84162) * error, rel=0.04)
    # Without pairing it would be the difference of two shares of 0.2: the tasks that are the same on both sides help.
    same = {**before, **{str(i): 1.0 for i in range(100, 200)}}
    assert detectable_difference([same], [{**same, **after}]) < minimum_detectable(200, 0.6)


def test_runs_that_disagree_hide_a_difference() -> None:
    """No task varies: run means of 0.2, 0.1 and 0 have a standard error of 0.1 / sqrt(3); quantiles of t with two."""
    before = dict.fromkeys("abcdefgh", 0.0)
    after = [dict.fromkeys("abcdefgh", mean) for mean in (0.2, 0.1, 0.0)]
    error = 0.1 / math.sqrt(3)
    assert detectable_difference([before] * 3, after) == pytest.approx((4.3027 + 1.0607) * error, rel=1e-3)
    assert detectable_difference([before] * 3, after, 5) == pytest.approx((9.9248 + 1.0607) * error, rel=1e-3)


@pytest.mark.parametrize("changed", [0, 1, 5])
def test_too_few_changed_tasks_promise_nothing(changed: int) -> None:
    """Five tasks won and none lost are no difference yet (p = 2 / 32), so no spread of theirs can show one."""
    before = {str(i): 0.0 for i in range(40)}
    after = {str(i): float(i < changed) for i in range(40)}
    assert detectable_difference([before], [after]) >= minimum_detectable(40, 0.0)
    assert detectable_difference([before], [after], 3) >= minimum_detectable(40, 0.0, 3) > minimum_detectable(40, 0.0)
    assert detectable_difference([{}], [{}]) == 1


def test_infinite_score_is_refused():
    with pytest.raises(ValueError, match="infinite"):
        bootstrap_mean([1.0, math.inf])


@settings(max_examples=60, deadline=None)
@given(st.lists(SCORES, max_size=3))
def test_any_runs_give_an_ordered_interval_inside_the_scores(runs):
    scored = [score for run in runs for score in run.values() if score is not None]
    interval = mean_runs(runs, resamples=100)
    if not scored:
        assert interval is None
        return
    assert interval is not None
    assert interval.low <= interval.mean <= interval.high
    if set(scored) in ({0.0}, {1.0}):  # the scores seen are one value, and the interval says which others may be
        assert 0 <= interval.low < interval.high <= 1
    else:
        assert interval.low >= 0
        assert interval.high <= 1


@settings(max_examples=60, deadline=None)
@given(SCORES, SCORES)
def test_swapping_the_sides_flips_the_difference(before, after):
    there, back = paired_difference(before, after, 100), paired_difference(after, before, 100)
    assert (there is None) == (back is None)
    if there is not None and back is not None:
        assert there.mean == pytest.approx(-back.mean)
        assert (there.n, there.left_out) == (back.n, back.left_out)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_strata_are_compared_each_by_itself() -> None:
    assert stratified_greater([(3, 4, 1, 4)]) == pytest.approx(17 / 70)
    assert stratified_greater([(1, 1, 0, 1), (1, 1, 0, 1)]) == pytest.approx(1 / 4)
    assert stratified_greater([(12, 12, 12, 12), (0, 0, 4, 24)]) == 1.0  # the second stratum has one side only
    assert stratified_greater([]) == 1.0
    assert stratified_difference([(12, 12, 12, 12), (0, 0, 4, 24)]) == 0.0
    # weights 4 * 4 / 8 and 2 * 6 / 8
    assert stratified_difference([(3, 4, 1, 4), (0, 2, 3, 6)]) == pytest.approx((2 * 0.5 - 1.5 * 0.5) / 3.5)
    assert stratified_difference([(1, 1, 0, 0), (0, 0, 1, 1)]) is None


def test_fisher_is_exact_on_the_lady_tasting_tea() -> None:
    assert fisher_greater(3, 4, 1, 4) == pytest.approx(17 / 70)
    assert fisher_greater(4, 4, 0, 4) == pytest.approx(1 / 70)
    assert fisher_greater(0, 4, 4, 4) == 1.0
    assert fisher_greater(2, 2, 0, 0) == 1.0


def test_a_ratio_of_means_by_hand() -> None:
    """Ratios of draws would lie between the same bounds: with one run, Fieller's are the bootstrap's."""
    whole = {f"t{i}": float(i < 30) for i in range(40)}
    part = {f"t{i}": float(i < 15) for i in range(40)}
    found = ratio_of_means([whole], [part])
    assert found is not None
    assert (found.value, found.n) == (pytest.approx(0.5), 40)
    drawn = np.random.default_rng(0).integers(0, 40, (2000, 40))
    ratios = (drawn < 15).sum(axis=1) / (drawn < 30).sum(axis=1)
    assert (found.low, found.high) == pytest.approx(np.quantile(ratios, [0.025, 0.975]), abs=0.02)


def test_a_ratio_of_means_is_none_unless_its_whole_is_above_zero() -> None:
    part = {f"t{i}": float(i < 15) for i in range(40)}
    unsure = {f"t{i}": (1.0 if i < 11 else -1.0 if i < 20 else 0.0) for i in range(40)}
    assert ratio_of_means([unsure], [part]) is None
    assert ratio_of_means([dict.fromkeys(part, -1.0)], [part]) is None
    assert ratio_of_means([{}], [{}]) is None


def test_a_ratio_of_means_that_does_not_vary_has_no_width() -> None:
    whole = {f"t{i}": float(i < 30) for i in range(40)}
    half = {task: value / 2 for task, value in whole.items()}
    for runs in (1, 3):
        found = ratio_of_means([whole] * runs, [half] * runs)
        assert found is not None
        assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5), abs=1e-5)


def test_the_interval_of_three_seeds_is_the_t_interval_by_hand() -> None:
    """Means 0.22, 0.14 and 0.053: mean 0.1377, standard error 0.0483, quantile of two degrees of freedom 4.3027."""
    runs = [dict.fromkeys("abcdefgh", mean) for mean in (0.22, 0.14, 0.053)]
    interval = paired_difference_runs([dict.fromkeys("abcdefgh", 0.0)] * 3, runs)
    assert interval is not None
    assert (interval.mean, interval.low, interval.high) == pytest.approx((0.1377, -0.0699, 0.3452), abs=2e-4)


@pytest.mark.parametrize(("runs", "between", "tasks"), [(2, 0.08, 40), (3, 0.0, 40), (3, 0.15, 150), (10, 0.04, 40)])
def test_intervals_over_seeds_cover_what_they_say(runs: int, between: float, tasks: int) -> None:
    """A gain of 20 points that varies by task (0.2) and by seed, before and after drawn as successes.

    Of 600 studies 95 % intervals may miss 5 %: below 93 % would be beyond chance. They may cover more, because the two
    sources are added conservatively. A bootstrap over seeds and tasks covers 87 % of the third kind.
    """
    random, covered = np.random.default_rng(1), 0
    for _ in range(600):
        chance_T = random.uniform(0.25, 0.45, tasks)
        gain_RT = 0.2 + random.uniform(-0.2, 0.2, tasks) + between * random.normal(size=(runs, 1))
        before_RT = random.random((runs, tasks)) < chance_T
        after_RT = random.random((runs, tasks)) < np.clip(chance_T + gain_RT, 0, 1)
        before, after = (
            [dict(enumerate(row.astype(float).tolist())) for row in side] for side in (before_RT, after_RT)
        )
        interval = paired_difference_runs(before, after)
        assert interval is not None
        covered += interval.low <= 0.2 <= interval.high
    assert covered >= 0.93 * 600


def test_scipy_agrees_with_the_formulas() -> None:
    for won, lost in itertools.product(range(13), repeat=2):
        n, least = won + lost, min(won, lost)
        assert sign_test(won, lost) == pytest.approx(min(1, 2 * sum(math.comb(n, i) for i in range(least + 1)) / 2**n))
    for won, n, other in itertools.product(range(5), (4, 9), range(7)):
        ways = [math.comb(n, i) * math.comb(6, won + other - i) for i in range(won, min(n, won + other) + 1)]
        assert fisher_greater(won, n, other, 6) == pytest.approx(sum(ways) / math.comb(n + 6, won + other))


def test_a_difference_over_runs_is_never_wider_than_there_can_be() -> None:
    """Two seeds, one gains everything and one loses everything: the t interval is far beyond 1."""
    zeros, ones = dict.fromkeys("abcdefgh", 0.0), dict.fromkeys("abcdefgh", 1.0)
    interval = paired_difference_runs([zeros, ones], [ones, zeros])
    assert interval is not None
    assert (interval.mean, interval.low, interval.high) == (0.0, -1.0, 1.0)
    tens = dict.fromkeys("abcdefgh", 10.0)  # scores of an environment with a scale of its own
    wide = paired_difference_runs([zeros, tens], [tens, zeros])
    assert wide is not None
    assert (wide.low, wide.high) == (-10.0, 10.0)
