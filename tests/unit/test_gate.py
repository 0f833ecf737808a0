import random

import pytest

from internalize.config.schema import load_config
from internalize.evaluation.gate import LOST, MISSED, decide, worse
from internalize.records import Checkpoint, EvalResult
from internalize.stages.promote import _decided


def results(successes, mode="internalized"):
    return [
        EvalResult(
            suite="dev", mode=mode, iteration=0, checkpoint="c", pool_version=None, task_id=str(i), success=success
        )
        for i, success in enumerate(successes)
    ]


ALL, HALF, NONE = results([1.0] * 20), results([1.0, 0.0] * 10), results([0.0] * 20)


@pytest.mark.parametrize(
    ("before", "after", "promote"),
    [(ALL, NONE, False), (ALL, HALF, False), (HALF, HALF, True), (HALF, ALL, True), (HALF, NONE, False)],
)
def test_no_worse_rolls_back_only_a_clear_loss(before, after, promote):
    decision = decide(before, after, "no_worse")
    assert decision.promote is promote
    assert decision.interval is not None
    assert decision.reason.startswith("no significant loss" if promote else "worse")


def test_always_promotes_and_still_says_what_changed():
    decision = decide(ALL, NONE, "always")
    assert decision.promote
    assert decision.interval is not None
    assert decision.interval.mean == -1


def test_a_loss_within_the_noise_is_kept():
    worse = results([1.0] * 19 + [0.0])
    decision = decide(ALL, worse, "no_worse")
    assert decision.promote
    assert decision.interval is not None
    assert decision.interval.mean == pytest.approx(-0.05)


def test_an_interval_below_zero_alone_rolls_nothing_back():
    before, after = results([1.0] * 24), results([0.0] * 4 + [1.0] * 20)
    decision = decide(before, after, "no_worse")  # exact p = 0.125
    assert decision.promote
    assert decision.interval.high < 0
    assert not decide(before, results([0.0] * 6 + [1.0] * 18), "no_worse").promote  # p = 0.031


@pytest.mark.parametrize(
    ("won", "lost", "known"),
    [(0, 11, True), (0, 10, None), (5, 0, None), (6, 0, False), (4, 17, True), (4, 16, None), (0, 0, None)],
)
def test_a_loss_is_known_where_the_likelihoods_say_so(won, lost, known):
    # A lost task counts log(4/3) = 0.288, a won one log(2/3) = -0.405; known at log(20) = 2.996 and log(0.1) = -2.303.
    assert worse(won, lost, 0.05) is known


@pytest.mark.parametrize(("of_lost", "mistake", "most"), [(0.5, True, 0.05), (LOST, False, MISSED)])
def test_asked_after_every_task_it_errs_no_more_often_than_it_says(of_lost, mistake, most):
    coin, runs = random.Random(0), 2000
    errors = 0
    for _ in range(runs):
        won = lost = 0
        while (known := worse(won, lost, 0.05)) is None and won + lost < 500:
            one = coin.random() < of_lost
            won, lost = won + (not one), lost + one
        errors += known is mistake
    assert errors / runs <= most + 0.01  # two standard errors of the simulation


def test_confirm_suspects_every_lower_mean_and_no_other():
    worse_by_one = results([1.0] * 19 + [0.0])
    assert not decide(ALL, worse_by_one, "confirm").promote
    assert decide(worse_by_one, ALL, "confirm").promote
    assert decide(ALL, ALL, "confirm").promote


def test_too_few_tasks_and_unscored_ones_never_roll_back():
    assert decide(ALL[:5], NONE[:5], "no_worse").promote
    assert not decide(ALL[:6], NONE[:6], "no_worse").promote
    unscored = decide(ALL, results([None] * 20), "no_worse")
    assert unscored.promote
    assert unscored.interval is None
    assert unscored.reason == "0 paired tasks cannot show a loss"


def test_results_with_experience_in_context_do_not_decide():
    decision = decide(ALL + results([0.0] * 20, "in_context"), ALL + results([0.0] * 20, "in_context"), "no_worse")
    assert decision.interval is not None
    assert decision.interval.mean == 0
    assert not decide(ALL, NONE + results([1.0] * 20, "in_context"), "no_worse").promote


class Declining:
    """A run that loses a little at every iteration; iterations in `dropped` were rolled back."""

    def __init__(self, *won, against, dropped=()):
        self.config = load_config(None, ["gate.rule=no_worse", f"gate.against={against}"])
        self.won, self.dropped = won, dropped

    def results(self):
        return [
            one.model_copy(update={"iteration": number})
            for number, count in enumerate(self.won)
            for one in results([1.0] * count + [0.0] * (40 - count))
        ]

    def kept(self, k):
        number = max(number for number in range(k + 1) if number not in self.dropped)
        return Checkpoint(id=str(number), parent=None, iteration=number, pool_version=None, config_digest="", path="")


def test_a_slow_decline_passes_the_parent_and_not_the_best():
    assert _decided(Declining(30, 28, 26, 24, against="parent"), 3).promote
    decision = _decided(Declining(30, 28, 26, 24, against="best"), 3)
    assert not decision.promote
    assert decision.rival == 0
    assert decision.interval.mean == pytest.approx(-6 / 40)


def test_the_best_is_the_latest_of_equals_and_none_that_was_rolled_back():
    assert _decided(Declining(20, 28, 28, 20, against="best"), 3).rival == 2
    assert _decided(Declining(20, 28, 35, 28, against="best", dropped=(2,)), 3).rival == 1
    assert _decided(Declining(20, 28, 28, 20, against="parent"), 3).rival == 2
