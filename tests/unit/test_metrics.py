import math

import pytest
from pydantic import ValidationError

from internalize.evaluation.metrics import (
    SuiteMetrics,
    eval_result,
    gathered,
    in_context_before,
    in_context_gain,
    iteration_metrics,
    retained,
    suite_metrics,
)
from internalize.records import EvalResult, Message, Trajectory
from tests.steps import act, step


class Docs:
    evidence_actions = frozenset({"search", "visit"})
    final_actions = frozenset({"answer"})


def played(name, tokens=2):
    action = None if name is None else act(name, "x")
    return step(text="x", call=action, token_ids=(1,) * tokens, logprobs=(-0.5,) * tokens)


def trajectory(*names, score=1.0, termination="answered", **rest):
    return Trajectory(
        id="t", task_id="a", env="docs", split="dev", iteration=1, seed=0, checkpoint="c1",
        prompt=(Message(role="user", content="q"),), steps=tuple(map(played, names)), termination=termination,
        score=score, **rest,
    )  # fmt: skip


def results(successes, *, iteration=0, mode="internalized", checkpoint=None, pool=None, **rest):
    """One result a task: tasks "0", "1", ... in the order of `successes`."""
    defaults = {"suite": "dev", "turns": 4, "action_tokens": 10, "nll": 1.0, **rest}
    pool = pool or (f"p{iteration}" if mode == "in_context" else None)
    return [
        EvalResult(
            mode=mode, iteration=iteration, checkpoint=checkpoint or f"c{iteration}", pool_version=pool,
            task_id=str(i), success=success, **defaults,
        )
        for i, success in enumerate(successes)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "premature"),
    [
        (("search", "visit", "answer"), False),
        (("answer",), True),
        ((None, "answer"), True),
        ((None, "think", "answer"), True),
        (("think", "search", "answer"), False),
        (("search", "search"), False),  # never answered
        ((), False),
    ],
)
def test_premature_is_a_final_action_before_any_evidence(names, premature):
    assert eval_result(trajectory(*names), "dev", "internalized", Docs()).premature is premature


def test_eval_result_counts():
    result = eval_result(
        trajectory("search", None, "visit", score=0.0, termination="max_steps"), "dev", "in_context", Docs()
    )
    assert (result.turns, result.invalid, result.action_tokens, result.truncated) == (3, 1, 6, True)
    assert (result.success, result.suite, result.mode, result.iteration, result.checkpoint) == (
        0.0,
        "dev",
        "in_context",
        1,
        "c1",
    )
    assert result.nll == pytest.approx(0.5)


def test_a_broken_episode_is_unscored_even_if_it_has_a_score():
    broken = trajectory("search", score=0.0, termination="failed", failure="connection lost")
    assert eval_result(broken, "dev", "internalized", Docs()).success is None


def test_suite_metrics_by_hand():
    rows = [
        *results([1.0, 0.0, 1.0], turns=2, invalid=1, action_tokens=10, nll=1.0, family="easy"),
        *results([None], turns=100, premature=True, truncated=True, action_tokens=1000),
        *results([0.0], turns=6, premature=True, truncated=True, action_tokens=30, nll=0.5, family="hard"),
    ]
    rows = [row.model_copy(update={"task_id": str(i)}) for i, row in enumerate(rows)]
    metrics = suite_metrics(rows)
    assert metrics.success is not None
    assert (metrics.success.mean, metrics.success.n, metrics.success.left_out) == (0.5, 4, 1)
    assert (metrics.results, metrics.unscored) == (4, 1)
    assert (metrics.premature_rate, metrics.truncated_rate) == (0.25, 0.25)
    assert (metrics.turns, metrics.action_tokens) == (3.0, 15.0)
    assert metrics.invalid_rate == 3 / 12
    assert metrics.nll == pytest.approx((30 * 1.0 + 30 * 0.5) / 60)
    assert {name: (f.mean, f.n) for name, f in metrics.families.items()} == {
        "easy": (pytest.approx(2 / 3), 3),
        "hard": (0, 1),
    }


def test_all_unscored_is_no_success_not_zero():
    metrics = suite_metrics(results([None, None]))
    assert metrics.success is None
    assert (metrics.results, metrics.unscored) == (0, 2)


def test_groups_do_not_mix():
    with pytest.raises(ValueError, match="2 groups"):
        suite_metrics([*results([1.0]), *results([1.0], mode="in_context")])
    with pytest.raises(ValueError, match="0 groups"):
        suite_metrics([])


def test_attempts_of_a_task_are_averaged():
    metrics = suite_metrics([*results([1.0, 1.0]), *results([0.0])])
    assert metrics.success is not None
    assert (metrics.success.mean, metrics.success.n, metrics.results) == (0.75, 2, 3)


STARTER = results([1.0, 0.0, 0.0, 0.0])
AFTER = results([1.0, 1.0, 0.0, 0.0], iteration=1)
WITH_POOL = results([1.0, 1.0, 1.0, None], iteration=1, mode="in_context")


def test_in_context_gain_is_paired():
    gain = in_context_gain([*AFTER, *WITH_POOL], "dev", (1, "c1"), "p1")
    assert gain is not None
    assert (gain.mean, gain.n, gain.left_out) == (pytest.approx(1 / 3), 3, 1)
    assert in_context_gain([*AFTER, *WITH_POOL], "dev", (1, "c1"), "p2") is None
    assert in_context_gain([*AFTER, *WITH_POOL], "dev", (0, "c0"), "p1") is None


def before(pool, shown, plain, k=0):
    """Policy `k`, plain and with the pool that it is then trained on."""
    return [
        *results(plain, iteration=k),
        *results(shown, iteration=k, mode="in_context", pool=pool),
    ]


def after(k, plain):
    """What iteration `k` made of it; the pool of `k` is p`k`."""
    return [*results(plain, iteration=k), *results(plain, iteration=k, mode="in_context")]


# Of 20 tasks: the starter solves 4, with the first pool 14; after the first training 9.
FIRST = [*before("p1", [1.0] * 14 + [0.0] * 6, [1.0] * 4 + [0.0] * 16), *after(1, [1.0] * 9 + [0.0] * 11)]
# With the second pool the policy of iteration 1 solves 17 of them.
SECOND = results([1.0] * 17 + [0.0] * 3, iteration=1, mode="in_context", pool="p2")


def test_retained_is_of_what_the_pool_added_to_the_policy_that_was_trained():
    """First iteration: 9 - 4 of 14 - 4. Second: 13 - 9 of 17 - 9, whatever the starter did."""
    rows = [*FIRST, *SECOND, *after(2, [1.0] * 13 + [0.0] * 7)]
    first, second = (retained([(rows, k)], "dev") for k in (1, 2))
    assert first is not None
    assert (first.value, first.n) == (pytest.approx(0.5), 20)
    assert second is not None
    assert second.value == pytest.approx(0.5)
    assert second.low < 0.5 < second.high


def test_a_training_that_changes_nothing_retains_nothing():
    """Measured from the starter, this iteration would retain (9 - 4) / (17 - 4) = 38 %."""
    found = retained([([*FIRST, *SECOND, *after(2, [1.0] * 9 + [0.0] * 11)], 2)], "dev")
    assert found is not None
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)


def test_only_tasks_scored_in_all_three_count():
    """Left: tasks 2 to 19. Before 2 of 18, with the pool 12, after 7."""
    gone = [None, None]
    shown = results([*gone, *[1.0] * 12, *[0.0] * 6], mode="in_context", pool="p1")
    rest = [r for r in FIRST if (r.iteration, r.mode) != (0, "in_context")]
    found = retained([([*shown, *rest], 1)], "dev")
    assert found is not None
    assert (found.value, found.n) == (pytest.approx((7 - 2) / (12 - 2)), 18)


def test_retained_is_a_ratio_of_means_over_seeds():
    """The pool adds 10, 12 and 11 of 20, and 5, 3 and 7 are kept: 15 of 33. A t interval of three seeds is wide."""
    seeds = [
        [*before("p1", [1.0] * (4 + gave) + [0.0] * (16 - gave), [1.0] * 4 + [0.0] * 16),
         *after(1, [1.0] * (4 + kept) + [0.0] * (16 - kept))]
        for gave, kept in ((10, 5), (12, 3), (11, 7))
    ]  # fmt: skip
    found = retained([(rows, 1) for rows in seeds], "dev")
    assert found is not None
    assert found.value == pytest.approx(15 / 33)
    assert found.low < 0 < found.high


def test_the_last_measured_policy_with_that_pool_counts():
    """The pool of iteration 2 was tried on the starter too; what was trained is the policy of iteration 1."""
    tried = results([1.0] * 20, mode="in_context", checkpoint="c0", pool="p2")
    found = retained([([*FIRST, *tried, *SECOND, *after(2, [1.0] * 17 + [0.0] * 3)], 2)], "dev")
    assert found is not None
    assert found.value == pytest.approx(1.0)


@pytest.mark.parametrize("gave", [0, 2, -5])
def test_retained_is_none_unless_the_pool_surely_added_something(gave):
    """Two tasks of twenty more is a gain whose interval contains zero."""
    rows = [*before("p1", [1.0] * (6 + gave) + [0.0] * (14 - gave), [1.0] * 6 + [0.0] * 14), *after(1, [1.0] * 20)]
    assert retained([(rows, 1)], "dev") is None


def test_retained_is_none_where_it_was_not_measured():
    plain = [r for r in FIRST if r.mode == "internalized"]
    assert retained([(plain, 1)], "dev") is None
    assert retained([([*plain, *WITH_POOL], 1)], "dev") is None  # never with this pool before the training
    assert retained([([r for r in FIRST if (r.iteration, r.mode) != (0, "internalized")], 1)], "dev") is None


def test_a_share_of_an_earlier_version_is_not_shown_as_this_one():
    """It was of the gain over the starter."""
    (line,) = iteration_metrics(STARTER)
    for old in (0.8, {"share": 0.8, "low": 0.6, "high": 1.1, "n": 40}):
        assert type(line).model_validate({**line.model_dump(), "retained": old}).retained is None


def test_of_a_policy_measured_twice_with_one_pool_the_later_results_count():
    """The second iteration was rolled back; the third goes on from the first, with the same pool."""
    first = [*AFTER, *WITH_POOL]
    rejected = results([0.0] * 4, mode="in_context", checkpoint="c2", pool="p1", iteration=2)
    again = results([1.0, 1.0, 1.0, 1.0], mode="in_context", checkpoint="c1", pool="p1", iteration=1)
    found = gathered([STARTER, first, rejected, again])
    assert [(r.iteration, r.mode) for r in found[:8]] == [(0, "internalized")] * 4 + [(1, "internalized")] * 4
    assert found[8:] == (*rejected, *again)
    last = results([1.0] * 4, mode="in_context", checkpoint="c3", pool="p1", iteration=3)
    assert {r.iteration for r in in_context_before((*found, *last), "dev", 3)} == {1}


def test_iteration_metrics_one_line_a_suite_and_mode():
    test_suite = results([0.0, 1.0], iteration=1, suite="test")
    shown = results([1.0, 1.0, 1.0, 1.0], mode="in_context", pool="p1")
    lines = iteration_metrics([*AFTER, *WITH_POOL, *test_suite], [*STARTER, *shown])
    assert [(line.suite, line.mode) for line in lines] == [
        ("dev", "internalized"),
        ("dev", "in_context"),
        ("test", "internalized"),
    ]
    plain, with_pool, other = lines
    assert plain.gain_over_starter is not None
    assert plain.gain_over_starter.mean == 0.25
    assert plain.retained is not None
    assert plain.retained.value == pytest.approx(1 / 3)
    assert plain.in_context_gain is with_pool.gain_over_starter is with_pool.retained is None
    assert with_pool.in_context_gain is not None
    assert with_pool.in_context_gain.mean == pytest.approx(1 / 3)
    assert other.gain_over_starter is None  # the starter was not measured on that suite


def test_the_starter_has_no_gain_and_lines_round_trip():
    (line,) = iteration_metrics(STARTER)
    assert line.gain_over_starter is None
    assert type(line).model_validate_json(line.model_dump_json()) == line
    assert math.isfinite(line.nll)


@pytest.mark.parametrize("field", ["premature_rate", "turns", "nll"])
def test_a_line_holds_numbers_only(field: str) -> None:
    line = SuiteMetrics(
        iteration=0, suite="dev", mode="internalized", checkpoint="c", pool_version=None, success=None, results=0,
        unscored=0,
    )  # fmt: skip
    for number in ("NaN", "Infinity", "-Infinity"):
        data = line.model_dump_json().replace(f'"{field}":0.0', f'"{field}":{number}')
        with pytest.raises(ValidationError, match=field):
            SuiteMetrics.model_validate_json(data)
