"""Rules: where they apply, what follows them, and that their sentences say all of them."""

from __future__ import annotations

import json

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st

from internalize.environments.docs.cues import ASKED, BESIDE, CUES, FIRST_NAME, LAST_NAME, asked_state
from internalize.experience.cues import BASE, EARLIER, FIELD, GENERIC, GIVEN, LINE, SAID, SHARED, START
from internalize.experience.rules import (
    Reading,
    Rule,
    applies,
    argument_of,
    decisions,
    matches,
    parse,
    phrase,
    situation_of,
    taken_by,
)
from internalize.interfaces import CueExtractor, Situation
from internalize.records import Message, Step, ToolCall, Trajectory
from tests.steps import act

ALIAS = "os.getcwdb (alias)\nAlias of posix.getcwdb"
FOLLOW = Rule(Reading(LINE, "Alias of"), "visit", Reading(LINE, "Alias of"))
QUESTION = "What is the default of mode in the function io.open, and also of width in the function textwrap.wrap?"


def at(observation: str | None, *taken: ToolCall) -> Situation:
    return Situation(QUESTION, () if observation is None else (observation,), taken_by(*taken))


def line(observation: str, label: str) -> str | None:
    return Reading(LINE, label).find(at(observation))


def test_a_line_is_read_to_the_comma_and_only_from_its_start() -> None:
    assert line("x\nBases: a.B, c.D", "Bases:") == "a.B"
    assert line("the Bases: a.B", "Bases:") is None
    assert line("Bases:a.B", "Bases:") is None
    assert line("Found:\n1. a.b", "Found:") == ""
    assert line("You see a door. It is open.", "You see a door.") == "It is open."


def test_a_rule_applies_where_its_cue_is_and_its_action_not_yet_done() -> None:
    assert applies(FOLLOW, at(ALIAS))
    assert not applies(FOLLOW, at("Parameters: x"))
    assert not applies(FOLLOW, at(None))
    assert not applies(FOLLOW, at("Alias of"))  # there is no argument
    assert not applies(FOLLOW, at(ALIAS, act("visit", "posix.getcwdb")))
    assert matches(FOLLOW, at(ALIAS), act("visit", "posix.getcwdb"))
    assert not matches(FOLLOW, at(ALIAS), act("answer", "posix.getcwdb"))


def test_a_rule_that_was_followed_is_known_under_every_tool_format() -> None:
    """In brackets or as JSON, whatever the argument is called and beside which others it stands."""
    for arguments in (
        {"page": "posix.getcwdb"},
        {"page": "posix.getcwdb", "part": 1},
        {"part": 1, "p": "posix.getcwdb"},
    ):
        call = ToolCall(name="visit", arguments=json.dumps(arguments, indent=1), id="call_7")
        assert matches(FOLLOW, at(ALIAS), call)
        messages = [
            Message(role="user", content=QUESTION),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content=ALIAS, tool_call_id="call_7"),
        ]
        assert situation_of(messages).observation == ALIAS
        assert not applies(FOLLOW, situation_of(messages))
        assert applies(FOLLOW, situation_of([messages[0], Message(role="assistant"), messages[2]]))


def test_calls_of_one_turn_are_decided_on_the_same_results_one_after_another() -> None:
    calls = tuple(ToolCall.of("look", box=name).model_copy(update={"id": name}) for name in "ab")
    results = tuple(Message(role="tool", content=f"In {name}", tool_call_id=name) for name in "ab")
    steps = (
        Step(text="", message=Message(role="assistant", tool_calls=calls), results=results),
        Step(text="", message=Message(role="assistant", tool_calls=(ToolCall.of("answer", value="1"),))),
    )
    trajectory = Trajectory(
        id="t", task_id="q", env="e", split="train", iteration=1, seed=0, checkpoint="c",
        prompt=(Message(role="user", content="?"),), steps=steps, termination="answered",
    )  # fmt: skip
    first, second, last = (situation for situation, _ in decisions(trajectory))
    assert (first.results, second.results, last.results) == ((), (), ("In a", "In b"))
    assert (first.taken, second.taken) == ((), (("look", "a"),))
    assert last == situation_of(trajectory.context(1))


def test_the_asked_word_is_there_or_missing() -> None:
    assert asked_state(at("Parameters: file, mode='r'")) == "there"
    assert asked_state(at("Parameters: file, modes='r'")) == "missing"
    assert asked_state(Situation("Hello?", ("x",))) == ""


def test_names_in_the_question() -> None:
    first, last = (argument_of(Rule(Reading(START), "search", Reading(of)), at(None)) for of in (FIRST_NAME, LAST_NAME))
    assert (first, last) == ("io.open", "textwrap.wrap")
    assert not applies(Rule(Reading(START), "search", Reading(LAST_NAME)), Situation("Which one?"))


@pytest.mark.parametrize(("value", "right"), [("'r'", True), ("-1", False), ("buffering", True)])
def test_the_value_beside_the_asked_word(value: str, right: bool) -> None:  # noqa: FBT001
    rule = Rule(Reading(LINE, "Parameters:"), "answer", Reading(BESIDE), Reading(ASKED, "there"))
    situation = at("Parameters: file, mode='r', buffering=-1")
    assert applies(rule, situation)
    assert matches(rule, situation, act("answer", value)) is right


def test_a_call_whose_argument_is_given_reads_as_it_is_written() -> None:
    rule = Rule(Reading(LINE, "Airplane Mode: ON"), "toggle_airplane_mode", Reading(GIVEN, ""))
    assert phrase(rule) == 'When you see "Airplane Mode: ON", toggle_airplane_mode[].'
    assert parse(phrase(rule)) == rule
    seen = at("SIM Card Status: active\nAirplane Mode: ON")
    assert applies(rule, seen)
    assert not applies(rule, at("Airplane Mode: OFF"))
    for argument in ("", "{}"):  # as the two tool formats write a call without arguments
        assert matches(rule, seen, act("toggle_airplane_mode", argument))
        assert not applies(rule, seen._replace(taken=taken_by(act("toggle_airplane_mode", argument))))
    assert not matches(rule, seen, act("toggle_data", ""))
    given = Rule(Reading(LINE, "Network: 2G"), "set_mode", Reading(GIVEN, '{"mode": "4g", "sim": 1}'))
    assert parse(phrase(given)) == given
    assert matches(given, seen, act("set_mode", '{"sim":1,"mode":"4g"}'))  # the order of arguments means nothing


# -- the generic extractors ---------------------------------------------------------------------------------------

ORDER = '{"order": {"id": "A-17", "paid": true, "lines": [{"sku": 9}]}, "note": "late"}'


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("order.id", "A-17"),
        ("order.paid", "true"),
        ("order.lines.0.sku", "9"),
        ("note: late", ""),
        ("order", None),
        ("order.id: A-18", None),
    ],
)
def test_fields_of_a_json_result(key: str, value: str | None) -> None:
    assert Reading(FIELD, key).find(at(ORDER)) == value
    several = Situation(QUESTION, ("no JSON", "[1, 2", ORDER))
    assert Reading(FIELD, key).find(several) == value


def test_a_number_of_a_json_result_is_the_argument_that_was_given_as_a_number() -> None:
    rule = Rule(Reading(FIELD, "note: late"), "find", Reading(FIELD, "order.lines.0.sku"))
    assert phrase(rule) == 'When the result has "note: late", find the value of "order.lines.0.sku".'
    assert matches(rule, at(ORDER), ToolCall.of("find", sku=9))
    assert not applies(rule, at(ORDER, ToolCall.of("find", sku=9)))


def test_the_argument_of_an_earlier_call() -> None:
    reading = Reading(EARLIER, "read")
    assert reading.find(at("x", act("read", "a.py"), ToolCall.of("read", path="b.py", lines=3))) == "b.py"
    assert reading.find(at("x", act("write", "a.py"))) is None


def test_a_word_that_the_result_shares_with_the_question() -> None:
    rule = Rule(Reading(LINE, "Customers:"), "open", Reading(SHARED))
    question = "What does Alice Smith owe for box b7 in the end?"
    seen = Situation(question, ("Customers: Bob Jones, Alice Smith, b7, the end",))
    assert applies(rule, seen)
    assert all(matches(rule, seen, act("open", name)) for name in ("Alice", "Alice Smith", "b7"))
    assert not any(matches(rule, seen, act("open", name)) for name in ("Bob Jones", "lice", "the", "owe"))
    assert not applies(rule, Situation("What does Carol owe?", seen.results))
    used = taken_by(*(act("open", name) for name in ("Alice", "Smith", "b7")))
    assert not applies(rule, seen._replace(taken=used))


# -- sentences ----------------------------------------------------------------------------------------------------

SENTENCES = (
    "At the start, search the first name in the question.",
    'When you see "Found:", visit the name after "1.".',
    'When you see "More:" and the asked word is missing, visit the name after "More:".',
    'When you see "Parameters:" and the asked word is there, answer the value beside the asked word.',
    'When the question says "and also" and the asked word is there, search the last name in the question.',
    'When you see "To the East you see the kitchen.", act[take coin].',
    'When the result has "order.status: pending", cancel the value of "order.id".',
    'When you see "Locked.", open the argument of the last look call.',
    'When you see "Customers:", open a word that the result shares with the question.',
)


@pytest.mark.parametrize("text", SENTENCES)
def test_sentences_of_pools_keep_their_wording(text: str) -> None:
    """An item's id is the hash of its text, and the packaged starter was trained on the words of `docs`."""
    rule = parse(text, (*CUES, *GENERIC))
    assert rule is not None
    assert phrase(rule) == text


KEYS = st.text(st.characters(exclude_characters='"', exclude_categories=("Cs",)), min_size=1)
NAMES = st.from_regex(r"\A[a-z_]+[a-z./_-]*\Z")


def readings(kind: str) -> st.SearchStrategy[Reading]:
    """Any reading that can stand at this place of a sentence."""
    texts = {of: getattr(of, kind) for of in (*BASE, *CUES, *GENERIC) if getattr(of, kind)}
    keys = {
        of: KEYS if '"{}"' in text or of is GIVEN else NAMES if "{}" in text else st.just("")
        for of, text in texts.items()
    }
    return st.one_of(*(st.builds(Reading, st.just(of), key) for of, key in keys.items()))


@drawn(st.builds(Rule, readings("cue"), NAMES, readings("value"), st.none() | readings("state")))
def test_a_sentence_says_all_of_its_rule(rule: Rule) -> None:
    assert parse(phrase(rule), (*CUES, *GENERIC)) == rule


def test_other_texts_are_no_rules() -> None:
    assert parse("When in doubt, look it up.") is None
    assert parse(SENTENCES[0], GENERIC) is None  # nothing there can be named so
    assert parse(SENTENCES[6], CUES) is None


def test_two_extractors_with_one_text_are_refused() -> None:
    twin = CueExtractor(lambda _: {}, value=FIRST_NAME.value)
    with pytest.raises(ValueError, match="the first name in the question"):
        parse("Anything.", (*CUES, twin))


def test_words_of_the_question_count_after_the_start() -> None:
    rule = Rule(Reading(SAID, "and also"), "search", Reading(LAST_NAME))
    assert not applies(rule, at(None))
    assert applies(rule, at("Found:"))
