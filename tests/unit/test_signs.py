import math
import re
from pathlib import Path

import pytest

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.metrics import SuiteMetrics
from internalize.evaluation.pool_health import leaks, pool_health, states_strategy
from internalize.evaluation.signs import (
    Thresholds,
    behaviour_cautions,
    drift_cautions,
    filter_cautions,
    pool_cautions,
    rejection_rate,
    suite_cautions,
    thresholds,
)
from internalize.evaluation.stats import Interval
from internalize.records import Experience
from tests.command import refused

RULES = (
    "When the page only names an alias, visit the page that defines it.",
    "Source check: compare two pages before you answer.",
    "- Never answer from memory.",
    "If a search finds nothing, rephrase it with the parent module.",
    "At the start, search the last name in the question.",
    "Failed tools: Treat an error as a reason to try another way, not as an answer.",
)
DETAILS = (
    "Question: default of mode of io.open? The page https://docs.example/io says 'r'.",
    "The population was 12,345 in the table.",
    "Its manual is from 2019.",
    'The heading reads "Changes in the second edition of it".',
)


def item(text, granularity="principle"):
    return Experience.new(text, granularity, "contrast")


@pytest.mark.parametrize("text", RULES)
def test_rules_are_strategies_and_leak_nothing(text):
    assert states_strategy(text)
    assert not leaks(text)


@pytest.mark.parametrize("text", DETAILS)
def test_details_leak_and_are_no_strategy(text):
    assert leaks(text)
    assert not states_strategy(text)


def test_short_quotes_and_small_numbers_are_cues():
    assert not leaks('When the page says "alias of", visit page 2 of 999.')
    assert not leaks("Try 1,2,3,4 in turn.")
    assert leaks("Read `the whole of this line` first.")


def test_entities_are_whole_words_of_any_case():
    assert leaks("Visit Json.Decoder first.", {"json.decoder"})
    assert not leaks("Visit json.decoders first.", {"json.decoder"})
    assert not leaks("Open (a) page.", {"", "b"})
    assert leaks("Call f(x) twice.", {"f(x)"})


def test_pool_health_shares():
    health = pool_health([*map(item, RULES[:4]), *map(item, DETAILS[:1])])
    assert (health.items, health.strategy_share, health.leak_share) == (5, 0.8, 0.2)
    assert pool_health([]).model_dump() == {"items": 0, "strategy_share": 0.0, "leak_share": 0.0}


def test_pool_cautions_judge_principles_only():
    assert pool_cautions([item(text) for text in RULES], 1) == ()
    assert pool_cautions([item(text, "instance") for text in DETAILS], 1) == ()
    cautions = pool_cautions([item(text) for text in DETAILS], 2)
    assert [(c.sign, c.iteration, c.value) for c in cautions] == [("least_strategy", 2, 0.0), ("most_leak", 2, 1.0)]


def test_rejection():
    assert rejection_rate(0, 0) is None
    assert rejection_rate(3, 1) == 0.25
    assert filter_cautions(2, 8, 1) == ()
    (caution,) = filter_cautions(1, 9, 1)
    assert (caution.sign, caution.value, caution.threshold) == ("most_rejected", 0.9, 0.8)


def test_accepted_trajectories_fall_below_the_best_so_far():
    assert filter_cautions(220, 180, 4, best=0.70) == ()  # 55 %: exactly 15 points are borne
    assert filter_cautions(16, 24, 6, best=0.70) == ()  # 28 and 16 of 40: p = 0.0065, and 0.005 is needed
    assert filter_cautions(15, 25, 6, best=0.70)  # 28 and 15 of 40: p = 0.0034
    (caution,) = filter_cautions(190, 210, 6, best=0.70)  # 47.5 %
    assert (caution.sign, caution.mode) == ("accepted_fall", None)
    assert caution.value == pytest.approx(0.225)
    assert caution.message == "accepted trajectories fell from 70% to 48%"


def test_repetition_and_spread_by_hand():
    starter = Behaviour(episodes=100, steps=300, repeated=21)
    loops = Behaviour(episodes=100, steps=500, repeated=100, shown={"i": 9, "j": 1})
    line = metrics(iteration=5, mode="in_context")
    repeated, narrow = behaviour_cautions(starter, loops, line, widest=4.0)
    assert (repeated.sign, repeated.iteration, repeated.suite, repeated.mode) == (
        "repeated_rise",
        5,
        "dev",
        "in_context",
    )
    assert repeated.value == pytest.approx(0.13)
    assert narrow.sign == "spread_shrink"
    assert narrow.value == pytest.approx(1.3842 / 4, rel=1e-4)  # e to the entropy of 0.9, 0.1
    assert (
        behaviour_cautions(starter, Behaviour(episodes=99, steps=100, repeated=17, shown={"i": 1}), line, widest=1.5)
        == ()
    )
    assert behaviour_cautions(Behaviour(), loops, line) == ()


def test_repeated_steps_count_as_of_their_episodes():
    """200 of 1000 steps against 70 would be beyond all chance; of forty episodes they are 8 and 3: p = 0.097."""
    few = (Behaviour(episodes=40, steps=1000, repeated=n) for n in (70, 200))
    many = (Behaviour(episodes=100, steps=1000, repeated=n) for n in (70, 200))  # 20 and 7 of 100: p = 0.006
    assert behaviour_cautions(*few, metrics()) == ()
    assert [c.sign for c in behaviour_cautions(*many, metrics())] == ["repeated_rise"]


def change(won, lost, n=40):
    """The difference when so many of `n` tasks are won and lost, one attempt each, and its 95 % interval."""
    mean = (won - lost) / n
    error = math.sqrt(((won + lost) / n - mean**2) / n)
    return Interval(mean=mean, low=mean - 1.96 * error, high=mean + 1.96 * error, n=n)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ((1, 6), (1, 5), True),  # 9 of 13: 9 / sqrt(13) = 2.50, and 2.33 is needed
        ((2, 6), (2, 5), False),  # 7 / sqrt(15) = 1.81
        ((2, 2), (0, 5), False),  # 5 / sqrt(9) = 1.67
        ((0, 5), (9, 9), False),  # the second is none
        ((9, 9), (0, 5), False),  # the first is none
    ],
)
def test_two_negative_gains_in_a_row_are_a_sign_beyond_chance(before, after, said):
    """Tasks won and lost by the pool. None of these gains is a sign by itself."""
    last, now = (metrics(iteration=3, mode="in_context", in_context_gain=change(*pair)) for pair in (before, after))
    cautions = drift_cautions(metrics(mode="in_context"), now, last=last)
    assert [c.sign for c in cautions] == (["pool_hurts_twice"] if said else [])
    assert drift_cautions(metrics(mode="in_context"), now, last=None) == ()


@pytest.mark.parametrize(("won", "lost", "said"), [(0, 5, False), (0, 6, True), (1, 7, False), (1, 8, True)])
@pytest.mark.parametrize("n", [20, 40, 400])
def test_a_loss_is_a_sign_by_the_tasks_that_changed(won, lost, said, n):
    """5 / sqrt(5) = 2.24, 6 / sqrt(6) = 2.45, 6 / sqrt(8) = 2.12, 7 / sqrt(9) = 2.333; 2.326 is needed."""
    assert signs(gain_over_starter=change(won, lost, n)) == (["below_starter"] if said else [])
    assert signs(in_context_gain=change(won, lost, n)) == (["pool_hurts"] if said else [])
    assert bool(suite_cautions(metrics(gain_over_starter=change(won, lost, n)))) is said


def test_a_pool_that_loses_every_task_or_none_is_judged_without_a_width():
    assert signs(in_context_gain=change(0, 20, 20)) == ["pool_hurts"]
    assert signs(in_context_gain=change(0, 0)) == []


def metrics(**rest):
    defaults = {"iteration": 0, "suite": "dev", "mode": "internalized", "checkpoint": "c", "pool_version": None}
    numbers = {"results": 20, "unscored": 0, "success": None, "turns": 3.0, "action_tokens": 30.0, "nll": 0.4}
    return SuiteMetrics(**{**defaults, **numbers, **rest})


def signs(**rest):
    return [caution.sign for caution in drift_cautions(metrics(), metrics(iteration=2, **rest))]


def test_no_drift_no_caution():
    assert signs() == []
    assert signs(premature_rate=0.09, turns=4.4, action_tokens=44.0) == []


def test_each_sign_by_itself():
    assert signs(premature_rate=0.35) == ["premature_rise"]  # 7 of 20 and none of 20: p = 0.004
    assert signs(premature_rate=0.30) == []  # 6 of 20: p = 0.0101
    assert signs(truncated_rate=0.35) == ["truncated_rise"]
    assert signs(invalid_rate=0.35) == ["invalid_rise"]  # 21 of 60 steps count as 7 of 20 episodes
    assert signs(invalid_rate=0.30) == []
    assert signs(turns=21.9, action_tokens=219.0) == ["turns_growth"]  # as long an action, more of them
    assert signs(action_tokens=60.0) == ["length_growth"]
    assert signs(nll=0.05) == ["nll_shrink"]


def test_thresholds_are_values():
    strict = Thresholds(premature_rise=0.01)
    (caution,) = drift_cautions(metrics(results=200), metrics(iteration=1, premature_rate=0.05, results=200), strict)
    assert caution.threshold == 0.01
    assert caution.message == "premature answers rose from 0% to 5%"


def test_a_starter_that_was_never_scored_is_no_yardstick():
    empty = metrics(turns=0.0, action_tokens=0.0, nll=0.0, results=0)
    assert drift_cautions(empty, metrics(iteration=1)) == ()


def test_thresholds_are_set_by_name():
    assert thresholds(["premature_rise=0.2", "turns_growth=2"]) == Thresholds(premature_rise=0.2, turns_growth=2.0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rise=1", "'rise=1': unknown sign; the thresholds are premature_rise, truncated_rise"),
        ("pool_hurts=1", "'pool_hurts=1': unknown sign; the thresholds are premature_rise"),
        ("turns_growth", "'turns_growth': '' is not a finite number; an example is turns_growth=1.5"),
        ("turns_growth=nan", "'nan' is not a finite number"),
        ("turns_growth=-inf", "'-inf' is not a finite number"),
    ],
)
def test_a_threshold_that_means_nothing_is_refused(wrong, said, call, tmp_path):
    assert refused(call("diagnose", tmp_path, "--threshold", "nll_shrink=0.1", "--threshold", wrong), said)


def test_the_reference_lists_every_sign_once():
    text = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    _, _, section = text.partition("### Cautions")
    table = section.partition("\n### ")[0].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    without = ("below_starter", "pool_hurts", "pool_hurts_twice", "suite_forgotten")
    assert sorted(listed) == sorted([*Thresholds.model_fields, *without])


def test_a_few_equal_differences_are_no_sign():
    """Their bootstrap has no width; five tasks that all got worse still have an exact two-sided p of 0.0625."""
    assert signs(gain_over_starter=Interval(mean=-1.0, low=-1.0, high=-1.0, n=5)) == []
    assert signs(gain_over_starter=Interval(mean=-1.0, low=-1.0, high=-1.0, n=6)) == ["below_starter"]
