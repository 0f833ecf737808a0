import math
import re
from pathlib import Path

import pytest

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.metrics import SuiteMetrics
from internalize.evaluation.pool_health import leaks, pool_health, states_strategy
from internalize.evaluation.signs import Observed, Thresholds, cautions, thresholds
from internalize.evaluation.stats import Interval
from internalize.records import Experience
from internalize.report.signs import ADVICE
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


def repeating(starter, now, limits=Thresholds()):  # noqa: B008 - frozen
    """The cautions of iteration 5, with the pool, for the behaviour of the starter and then."""
    line = metrics(iteration=5, mode="in_context")
    earlier = [Observed(number=0, behaviour={"in_context": starter})]
    return cautions(earlier, Observed(number=5, in_context=line, behaviour={"in_context": now}), limits)


def test_repetition_by_hand():
    starter = Behaviour(episodes=100, steps=300, repeated=21)
    (repeated,) = repeating(starter, Behaviour(episodes=100, steps=500, repeated=100))
    assert (repeated.sign, repeated.iteration, repeated.suite, repeated.mode) == (
        "repeated_rise",
        5,
        "dev",
        "in_context",
    )
    assert repeated.value == pytest.approx(0.13)
    assert repeated.message == "repeated actions rose from 7% to 20%"
    assert repeating(starter, Behaviour(episodes=99, steps=100, repeated=17)) == ()
    assert repeating(Behaviour(), Behaviour(episodes=100, steps=500, repeated=100)) == ()


def test_repeated_steps_count_as_of_their_episodes():
    """200 of 1000 steps against 70 would be beyond all chance; of forty episodes they are 8 and 3: p = 0.097."""
    few = [Behaviour(episodes=40, steps=1000, repeated=n) for n in (70, 200)]
    many = [Behaviour(episodes=100, steps=1000, repeated=n) for n in (70, 200)]  # 20 and 7 of 100: p = 0.006
    assert repeating(*few) == ()
    assert [c.sign for c in repeating(*many)] == ["repeated_rise"]
    assert repeating(*many, Thresholds(level=0.005)) == ()
    assert repeating(*many, Thresholds(repeated_rise=0.14)) == ()
    assert [c.sign for c in repeating(*few, Thresholds(level=0.1))] == ["repeated_rise"]


def change(won, lost, n=40):
    """The difference when so many of `n` tasks are won and lost, one attempt each, and its 95 % interval."""
    mean = (won - lost) / n
    error = math.sqrt(((won + lost) / n - mean**2) / n)
    return Interval(mean=mean, low=mean - 1.96 * error, high=mean + 1.96 * error, n=n)


@pytest.mark.parametrize(("won", "lost", "said"), [(0, 5, False), (0, 6, True), (1, 7, False), (1, 8, True)])
@pytest.mark.parametrize("n", [20, 40, 400])
def test_a_loss_is_a_sign_by_the_tasks_that_changed(won, lost, said, n):
    """5 / sqrt(5) = 2.24, 6 / sqrt(6) = 2.45, 6 / sqrt(8) = 2.12, 7 / sqrt(9) = 2.333; 2.326 is needed."""
    assert signs(gain_over_starter=change(won, lost, n)) == (["below_starter"] if said else [])
    assert signs(in_context_gain=change(won, lost, n)) == (["pool_hurts"] if said else [])
    forgot = cautions([], Observed(number=2, further=(metrics(suite="old", gain_over_starter=change(won, lost, n)),)))
    assert [c.sign for c in forgot] == (["suite_forgotten"] if said else [])
    assert all(c.message.startswith("old is forgotten: success is") for c in forgot)


def test_a_pool_that_loses_every_task_or_none_is_judged_without_a_width():
    assert signs(in_context_gain=change(0, 20, 20)) == ["pool_hurts"]
    assert signs(in_context_gain=change(0, 0)) == []


def metrics(**rest):
    defaults = {"iteration": 0, "suite": "dev", "mode": "internalized", "checkpoint": "c", "pool_version": None}
    numbers = {"results": 20, "unscored": 0, "success": None, "turns": 3.0, "action_tokens": 30.0, "nll": 0.4}
    return SuiteMetrics(**{**defaults, **numbers, **rest})


def signs(**rest):
    return [caution.sign for caution in cautions([], Observed(number=2, internalized=metrics(iteration=2, **rest)))]


def test_what_was_not_shown_to_come_before_a_collapse_is_no_sign():
    assert signs(premature_rate=0.9, truncated_rate=0.9, invalid_rate=0.9, turns=20.0, nll=0.001) == []


def test_the_starter_is_not_warned_of():
    worse = metrics(in_context_gain=change(0, 20, 20))
    assert cautions([], Observed(number=0, in_context=worse)) == ()
    assert cautions([], Observed(number=1, in_context=worse)) != ()


def test_thresholds_are_set_by_name():
    assert thresholds(["repeated_rise=0.2", "level=0.05"]) == Thresholds(repeated_rise=0.2, level=0.05)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rise=1", "'rise=1': unknown; the thresholds are repeated_rise, level"),
        ("pool_hurts=1", "'pool_hurts=1': unknown; the thresholds are repeated_rise, level"),
        ("repeated_rise", "'repeated_rise': '' is not a finite number; an example is repeated_rise=0.1"),
        ("repeated_rise=nan", "'nan' is not a finite number"),
        ("level=-inf", "'-inf' is not a finite number"),
        ("level=0", "'level=0': a level is above 0 and below 0.5"),
        ("level=0.5", "'level=0.5': a level is above 0 and below 0.5"),
    ],
)
def test_a_threshold_that_means_nothing_is_refused(wrong, said, call, tmp_path):
    assert refused(call("diagnose", tmp_path, "--threshold", "repeated_rise=0.3", "--threshold", wrong), said)


def test_the_reference_lists_every_sign_once():
    text = (Path(__file__).parents[2] / "docs" / "reference.md").read_text(encoding="utf-8")
    _, _, section = text.partition("### Cautions")
    table = section.partition("\n### ")[0].partition("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    listed = [name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(listed) == sorted(ADVICE)


def test_a_few_equal_differences_are_no_sign():
    """Their bootstrap has no width; five tasks that all got worse still have an exact two-sided p of 0.0625."""
    assert signs(gain_over_starter=Interval(mean=-1.0, low=-1.0, high=-1.0, n=5)) == []
    assert signs(gain_over_starter=Interval(mean=-1.0, low=-1.0, high=-1.0, n=6)) == ["below_starter"]
