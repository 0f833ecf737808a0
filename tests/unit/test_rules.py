import pytest

from internalize.experience.rules import (
    BESIDE,
    EXACTLY,
    FIRST_NAME,
    LAST_NAME,
    START,
    Rule,
    Situation,
    applies,
    argument_of,
    asked_state,
    follows,
    matches,
    parse,
    phrase,
)
from tests.steps import act

ALIAS = "os.getcwdb (alias)\nAlias of posix.getcwdb"
QUESTION = "What is the default of mode in the function io.open, and also of width in the function textwrap.wrap?"


def at(observation: str | None, *taken: tuple[str, str]) -> Situation:
    return Situation(QUESTION, observation, frozenset(taken))


def test_follows_reads_to_the_comma_and_only_from_the_start_of_a_line() -> None:
    assert follows("x\nBases: a.B, c.D", "Bases:") == "a.B"
    assert follows("the Bases: a.B", "Bases:") is None
    assert follows("Found:\n1. a.b", "Found:") == ""


def test_a_rule_applies_where_its_cue_is_and_its_action_not_yet_done() -> None:
    rule = Rule("observation", "Alias of", "", "visit", "Alias of")
    assert applies(rule, at(ALIAS))
    assert not applies(rule, at("Parameters: x"))
    assert not applies(rule, at(None))
    assert not applies(rule, at(ALIAS, ("visit", "posix.getcwdb")))
    assert matches(rule, at(ALIAS), act("visit", "posix.getcwdb"))
    assert not matches(rule, at(ALIAS), act("answer", "posix.getcwdb"))


def test_the_asked_word_is_there_or_missing() -> None:
    assert asked_state(at("Parameters: file, mode='r'")) == "there"
    assert asked_state(at("Parameters: file, modes='r'")) == "missing"
    assert asked_state(Situation("Hello?", "x", frozenset())) == ""


def test_names_in_the_question() -> None:
    first, last = (argument_of(Rule(START, "", "", "search", name), at(None)) for name in (FIRST_NAME, LAST_NAME))
    assert (first, last) == ("io.open", "textwrap.wrap")


@pytest.mark.parametrize(("value", "right"), [("'r'", True), ("-1", False), ("buffering", True)])
def test_the_value_beside_the_asked_word(value: str, right: bool) -> None:  # noqa: FBT001
    rule = Rule("observation", "Parameters:", "there", "answer", BESIDE)
    situation = at("Parameters: file, mode='r', buffering=-1")
    assert matches(rule, situation, act("answer", value)) is right


def test_phrases_differ_for_every_rule() -> None:
    places = [("start", ""), ("question", "and also"), ("observation", "Alias of"), ("observation", "More:")]
    rules = [
        Rule(place, cue, asked, verb, source)
        for place, cue in places
        for asked in ("", "there", "missing")
        for verb in ("visit", "search")
        for source in (FIRST_NAME, LAST_NAME, BESIDE, "1.", "Alias of")
    ]
    assert len({phrase(rule) for rule in rules}) == len(rules)
    assert all(parse(phrase(rule)) == rule for rule in rules if rule.place != START or not rule.cue)
    assert parse("When in doubt, look it up.") is None


def test_a_call_whose_argument_is_given_reads_as_it_is_written() -> None:
    rule = Rule("observation", "Airplane Mode: ON", "", "toggle_airplane_mode", EXACTLY)
    assert phrase(rule) == 'When you see "Airplane Mode: ON", toggle_airplane_mode[].'
    assert parse(phrase(rule)) == rule
    seen = at("SIM Card Status: active\nAirplane Mode: ON")
    assert applies(rule, seen)
    assert not applies(rule, at("Airplane Mode: OFF"))
    for argument in ("", "{}"):  # as the two protocols write a call without arguments
        assert matches(rule, seen, act("toggle_airplane_mode", argument))
    assert not matches(rule, seen, act("toggle_data", ""))
    assert not applies(rule, seen._replace(taken=frozenset({("toggle_airplane_mode", "")})))
    given = Rule("observation", "Cellular Network Type: 2G", "", "set_mode", f'{EXACTLY}{{"mode": "4g"}}')
    assert parse(phrase(given)) == given
    assert matches(given, seen, act("set_mode", '{"mode": "4g"}'))
