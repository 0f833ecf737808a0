import pytest

from internalize.gate import decide
from internalize.records import EvalResult


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
    assert decision.reason.startswith("no worse" if promote else "worse")


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
