"""What contrast finds: on questions about documentation, with lines and calls alone, with JSON, with several calls."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence

from internalize.config.schema import ExtractConfig
from internalize.environments.docs.cues import CUES
from internalize.experience.extract.contrast import contrast as contrast_with
from internalize.experience.lint import lint
from internalize.experience.pool import ExperiencePool, empty
from internalize.experience.selectors import LexicalSelector
from internalize.interfaces import CueExtractor, Situation
from internalize.records import Message, PoolEdit, Step, ToolCall, Trajectory
from tests.steps import act, step

CONFIG = ExtractConfig(min_support=3)


def contrast(
    trajectories: Sequence[Trajectory], pool: ExperiencePool, config: ExtractConfig, iteration: int
) -> tuple[PoolEdit, ...]:
    return contrast_with(trajectories, pool, config, iteration, CUES)


def played(
    name: str, question: str, calls: Sequence[tuple[str, str, str]], score: float | None, **rest: object
) -> Trajectory:
    """An episode of single calls: tool, argument and result of each; the last ends it."""
    steps = [step(text=f"{verb}[{argument}]", call=act(verb, argument), seen=seen) for verb, argument, seen in calls]
    return Trajectory.model_validate({
        "id": name, "task_id": question, "env": "e", "split": "train", "iteration": 1, "seed": 0, "checkpoint": "c",
        "prompt": (Message(role="user", content=question),), "steps": tuple(steps), "termination": "answered",
        "score": score, **rest,
    })  # fmt: skip


def episode(number: int, *, follow: bool, score: float | None, failure: str | None = None) -> Trajectory:
    """Search, visit a page that is an alias, then follow it or answer at once."""
    name, target = f"pkg.mod{number}.f", f"other.m{number}.g"
    calls = [("search", name, f"Found:\n1. {name}"), ("visit", name, f"{name} (alias)\nAlias of {target}")]
    if follow:
        calls.append(("visit", target, f"{target} (function)\nParameters: p{number}={number}"))
    calls.append(("answer", str(number) if follow else "None", ""))
    question = f"What is the default of p{number} in the function {name}?"
    return played(f"t{number}{follow}{score}", question, calls, score, failure=failure)


EARLIER_EDITS = [
    (
        "7dd6a263c4af",
        'When you see "Alias of", visit the name after "Alias of".',
        8,
        "lift +0.89 over 8 others, p = 7.8e-05",
    ),
    (
        "939a22d11218",
        'When you see "More:", visit the name after "More:".',
        8,
        "lift +0.40 over 4 others, p = 0.14",
    ),
    (
        "872f29dc6a1e",
        'When you see "Parameters:" and the asked word is there, search the last name in the question.',
        4,
        "lift +0.80 over 4 others, p = 0.014",
    ),
    (
        "10646122a9ff",
        'When you see "Parameters:" and the asked word is there, answer the value beside the asked word.',
        8,
        "lift +0.29 over 12 others, p = 0.038",
    ),
    (
        "47af336c0db3",
        'When you see "1.", visit the last name in the question.',
        20,
        "lift +0.25 over 12 others, p = 0.0041",
    ),
]


def mixed() -> list[Trajectory]:
    won = [episode(n, follow=True, score=1.0) for n in range(8)]
    return won + [episode(n, follow=False, score=0.0) for n in range(4, 12)]


def test_the_rule_that_parts_success_from_failure_is_found_with_its_numbers() -> None:
    edits = contrast(mixed(), empty(10), CONFIG, 1)
    texts = {edit.item.text: edit.item for edit in edits if edit.item}
    item = texts['When you see "Alias of", visit the name after "Alias of".']
    assert (item.support, item.iteration, item.granularity) == (8, 1, "principle")
    assert item.lift == round(8.5 / 9 - 0.5 / 9, 4)  # shrunk rates: (8 + 1/2) / (8 + 1) and (0 + 1/2) / (8 + 1)
    assert item.evidence


def long_way(number: int) -> Trajectory:
    """Two names are asked about. The first page goes on in a second part; every third episode stops too early."""
    first, second, early = f"pkg.mod{number}.f", f"pkg.mod{number}.g", number % 3
    calls = [
        ("search", first, f"Found:\n1. {first}\n2. {second}"),
        ("visit", first, f"{first} (function)\nParameters: a, b=1\nMore: {first}#2"),
        ("visit", f"{first}#2", f"{first}, part 2\nParameters: p{number}={number}, c"),
        ("search", second, f"Found:\n1. {second}"),
        ("visit", second, f"{second} (function)\nParameters: q{number}=None, d"),
    ]
    kept = calls[: (5, 2, 3)[early]]
    question = (
        f"What is the default of p{number} in the function {first}, and also of q{number} in the function {second}?"
    )
    return played(f"l{number}", question, [*kept, ("answer", f"{number}, None", "")], float(not early))


def test_the_edits_of_documentation_are_those_of_earlier_versions() -> None:
    """Pools, and the starter that was trained on their sentences, live longer than the code that finds them."""
    settings = ExtractConfig(min_support=2, min_lift=0.0, max_p=0.2, add=100)
    edits = contrast([*mixed(), *map(long_way, range(12))], empty(10), settings, 1)
    found = [(edit.item.id, edit.item.text, edit.item.support, edit.reason) for edit in edits if edit.item]
    assert found == EARLIER_EDITS


def test_principles_hold_no_detail_of_a_task() -> None:
    texts = [edit.item.text for edit in contrast(mixed(), empty(10), CONFIG, 1) if edit.item]
    assert texts
    assert not any(f"m{n}" in text or f"p{n}" in text for text in texts for n in range(12))


def test_without_failures_there_is_no_contrast() -> None:
    assert contrast([episode(n, follow=True, score=1.0) for n in range(8)], empty(10), CONFIG, 1) == ()


def test_unscored_episodes_are_no_evidence() -> None:
    broken = [episode(n, follow=False, score=None, failure="engine down") for n in range(20, 60)]
    assert contrast([*mixed(), *broken], empty(10), CONFIG, 1) == contrast(mixed(), empty(10), CONFIG, 1)


def test_instances_keep_the_example_where_outcomes_part() -> None:
    config = ExtractConfig(granularity="instance")
    (first, *_) = contrast(mixed(), empty(10), config, 1)
    assert first.item
    assert "visit[other.m7.g] worked" in first.item.text  # of the newest task
    assert first.item.granularity == "instance"


def test_held_instances_leave_room_for_new_ones() -> None:
    config = ExtractConfig(granularity="instance", add=2)
    first = contrast(mixed(), empty(10), config, 1)
    pool = empty(10).apply(first)
    second = contrast(mixed(), pool, config, 2)
    assert len(first) == len(second) == 2
    assert not {e.item.id for e in second if e.item} & {item.id for item in pool.items}


def test_a_held_rule_that_now_harms_is_deleted() -> None:
    pool = empty(10).apply(contrast(mixed(), empty(10), CONFIG, 1))
    turned = [t.model_copy(update={"score": 1.0 - t.score}) for t in mixed() if t.score is not None]
    deleted = {target for e in contrast(turned, pool, CONFIG, 2) if e.op == "DELETE" for target in e.targets}
    rule = next(i for i in pool.items if i.text.startswith('When you see "Alias of", visit'))
    assert rule.id in deleted


def test_a_lift_that_may_be_chance_makes_no_rule() -> None:
    few = [episode(n, follow=True, score=1.0) for n in range(4)] + [episode(n, follow=False, score=0.0) for n in (4, 5)]
    assert contrast(few, empty(10), CONFIG, 1) == ()  # p = 1 / C(6, 2) = 0.067, though the lift is 0.73
    more = [*few, *(episode(n, follow=False, score=0.0) for n in (6, 7))]
    assert contrast(more, empty(10), CONFIG, 1)  # p = 1 / C(8, 4) = 0.014


def test_an_episode_counts_once_however_often_it_decides() -> None:
    circles = [t.model_copy(update={"steps": t.steps[:2] * 6}) for t in mixed() if not t.score]
    found = contrast([*(t for t in mixed() if t.score), *circles], empty(10), CONFIG, 1)
    (edit,) = [e for e in found if e.item and e.item.text.startswith('When you see "Alias of", visit')]
    assert "over 40 others, p = 7.8e-05" in edit.reason  # 1 / C(16, 8), not 1 / C(48, 8)


def test_a_held_rule_that_no_episode_only_ignored_stays() -> None:
    """Every episode followed it at one step and not at another: nothing is there to compare with."""
    pool = empty(10).apply(contrast(mixed(), empty(10), CONFIG, 1))
    rule = next(i for i in pool.items if i.text.startswith('When you see "Alias of", visit'))
    both = []
    for t in mixed()[:8]:
        search, visit, *rest = t.steps
        both.append(t.model_copy(update={"steps": (search, visit, visit, *rest)}))
    assert all(rule.id not in e.targets for e in contrast(both, pool, CONFIG, 2))


def repair(number: int, *, right: bool) -> Trajectory:
    """A phone whose fault is one of two, and a repair without arguments that fits or does not."""
    fault = ("Airplane Mode: ON\nMobile Data: ON", "toggle_airplane")
    other = ("Airplane Mode: OFF\nMobile Data: OFF", "toggle_data")
    (seen, fix), (_, wrong) = (fault, other) if number % 2 else (other, fault)
    calls = [("check", "{}", f"{seen}\nBattery: {number}%"), (fix if right else wrong, "{}", "Done.")]
    return played(f"r{number}{right}", "The phone does not work.", calls, float(right), task_id=f"p{number}")


def test_calls_without_arguments_and_whole_lines_make_rules_even_if_all_tasks_ask_the_same() -> None:
    episodes = [repair(n, right=right) for n in range(10) for right in (True, False)]
    texts = {edit.item.text for edit in contrast(episodes, empty(10), CONFIG, 1) if edit.item}
    assert any(text.endswith(': ON", toggle_airplane[].') for text in texts)
    assert any(text.endswith(': OFF", toggle_data[].') for text in texts)
    assert not any("Battery: " in text and "%" in text for text in texts)  # a line of one task is no cue


# -- other environments: the generic extractors, and one of an environment's own -----------------------------------


def orders(number: int, shown: Callable[[int, str], str], right: bool) -> Trajectory:  # noqa: FBT001
    """Find an order, then cancel it if it is pending and return it if not; who is wrong does the opposite."""
    status = "pending" if number % 2 else "shipped"
    verb = "cancel" if (status == "pending") == right else "return"
    done = ToolCall.of(verb, reason=f"because {number}", order=f"A-{number}")
    calls = (ToolCall.of("find", user=f"u{number}"), done, ToolCall.of("finish"))
    steps = [step("", call, seen) for call, seen in zip(calls, (shown(number, status), "ok", None), strict=True)]
    return played(f"o{number}{right}", f"Customer u{number} wants no order.", (), float(right), steps=steps)


def as_json(number: int, status: str) -> str:
    return json.dumps({"status": status, "user": {"id": f"u{number}"}, "order": {"id": f"A-{number}", "total": number}})


def as_lines(number: int, status: str) -> str:
    return f"Status: {status}\nUser: u{number}\nOrder: A-{number}\nTotal: {number}"


def found_in(episodes: Sequence[Trajectory], cues: Sequence[CueExtractor] | None = None) -> ExperiencePool:
    given = () if cues is None else (tuple(cues),)
    return empty(10).apply(contrast_with(episodes, empty(10), CONFIG, 1, *given))


def selected(
    pool: ExperiencePool, question: str, *turns: tuple[ToolCall, str], cues: Sequence[CueExtractor] = ()
) -> set[str]:
    """What is chosen from the texts of a pool alone, in a conversation with these calls and results."""
    messages = [Message(role="user", content=question)]
    for call, result in turns:
        messages += [Message(role="assistant", tool_calls=(call,)), Message(role="tool", content=result)]
    chosen, _ = asyncio.run(
        (LexicalSelector(tuple(cues)) if cues else LexicalSelector()).select(messages, pool.items, 9)
    )
    return {item.text for item in pool.items if item.id in chosen}


def test_fields_of_json_results_make_rules_that_are_selected_again() -> None:
    pool = found_in([orders(n, as_json, right) for n in range(12) for right in (True, False)])
    cancel = 'When the result has "status: pending", cancel the value of "order.id".'
    send_back = 'When the result has "status: shipped", return the value of "order.id".'
    assert {cancel, send_back} == {item.text for item in pool.items}
    assert {flag.sign for flag in lint(pool.items)} == set()
    look, pending = ToolCall.of("find", user="u99"), as_json(99, "pending")
    assert selected(pool, "No order.") == set()
    assert selected(pool, "No order.", (look, pending)) == {cancel}
    assert selected(pool, "No order.", (look, as_json(99, "shipped"))) == {send_back}
    assert selected(pool, "No order.", (ToolCall.of("cancel", order="A-99", reason="x"), pending)) == set()


def test_lines_with_a_label_and_a_value_make_rules_that_are_selected_again() -> None:
    pool = found_in([orders(n, as_lines, right) for n in range(12) for right in (True, False)])
    cancel = 'When you see "Status: pending", cancel the name after "Order:".'
    assert cancel in {item.text for item in pool.items}
    assert selected(pool, "No order.", (ToolCall.of("find", user="u99"), as_lines(99, "pending"))) == {cancel}


def test_the_argument_of_an_earlier_call_makes_a_rule_that_is_selected_again() -> None:
    def box(number: int, verb: str) -> Trajectory:
        calls = [("look", f"box {number}", "It is locked."), (verb, f"box {number}", "Click."), ("answer", "x", "")]
        return played(f"{verb}{number}", f"What is in number {number}?", calls, float(verb == "unlock"))

    pool = found_in([box(n, verb) for n in range(8) for verb in ("unlock", "kick")])
    rule = 'When you see "It is locked.", unlock the argument of the last look call.'
    assert [item.text for item in pool.items] == [rule]
    assert selected(pool, "And in this?", (act("look", "box 99"), "It is locked.")) == {rule}
    assert selected(pool, "And in this?", (act("unlock", "box 99"), "It is locked.")) == set()


def test_a_word_that_result_and_question_share_makes_a_rule_that_is_selected_again() -> None:
    def account(number: int, right: bool) -> Trajectory:  # noqa: FBT001
        opened = f"Holder{number if right else number + 1}"
        seen = f"Accounts:\n- by Holder{number + 1}\n- by Holder{number}"
        calls = [("list", "all", seen), ("open", opened, "It has 3."), ("answer", "3", "")]
        return played(f"{number}{right}", f"What has Holder{number} saved?", calls, float(right))

    pool = found_in([account(n, right) for n in range(8) for right in (True, False)])
    rule = 'When you see "- by", open a word that the result shares with the question.'
    assert [item.text for item in pool.items] == [rule]
    assert selected(pool, "What has Holder99 saved?", (act("list", "all"), "Accounts:\n- by Holder99")) == {rule}
    assert selected(pool, "What has Holder99 saved?", (act("list", "all"), "Accounts:\n- by Holder98")) == set()


def test_what_an_environment_offers_makes_rules_and_nothing_else_does() -> None:
    def last_word(situation: Situation) -> dict[str, str]:
        return {"": situation.question.rstrip("?").split()[-1]}

    def box(number: int, right: bool) -> Trajectory:  # noqa: FBT001
        calls = [("look", f"b{number}" if right else "b0", "Red."), ("answer", "red", "")]
        return played(f"{number}{right}", f"What colour is b{number}?", calls, float(right))

    episodes = [box(n, right) for n in range(1, 9) for right in (True, False)]
    own = [CueExtractor(last_word, value="the last word of the question", in_question=True)]
    rule = "At the start, look the last word of the question."
    pool = found_in(episodes, own)
    assert rule in {item.text for item in pool.items}
    assert rule in selected(pool, "What colour is b99?", cues=own)
    assert rule not in selected(pool, "What colour is b99?", (act("look", "b99"), "Red."), cues=own)
    assert rule not in {item.text for item in found_in(episodes).items}


def test_each_of_several_calls_of_a_turn_is_a_decision() -> None:
    def hall(number: int, right: bool) -> Trajectory:  # noqa: FBT001
        """Both look twice in one turn and open the door; who wins pulls the lever first, in the same turn."""
        looks = [ToolCall(name="look", arguments=f'{{"at": "{at}"}}', id=at) for at in ("north", "south")]
        pull, open_ = ToolCall.of("pull", what=f"L{number}"), ToolCall.of("open", what=f"D{number}")
        seen = (f"Lever: L{number}", f"Door: D{number}")
        steps = [
            Step(
                text="",
                message=Message(role="assistant", tool_calls=tuple(looks)),
                results=tuple(
                    Message(role="tool", content=text, tool_call_id=c.id) for c, text in zip(looks, seen, strict=True)
                ),
            ),
            Step(text="", message=Message(role="assistant", tool_calls=(pull, open_) if right else (open_,))),
        ]
        return played(f"h{number}{right}", f"Leave hall {number}.", (), float(right), steps=steps)

    pool = found_in([hall(n, right) for n in range(8) for right in (True, False)])
    (item,) = pool.items
    assert item.text == 'When you see "Lever:", pull the name after "Lever:".'
    assert (item.support, item.lift) == (8, round(8.5 / 9 - 0.5 / 9, 4))


def test_a_rule_whose_sentence_could_not_be_read_back_is_not_written() -> None:
    """JSON over several lines has lines with quotes, which the sentence would have to quote."""

    def shown(number: int, status: str) -> str:
        return json.dumps(json.loads(as_json(number, status)), indent=1)

    pool = found_in([orders(n, shown, right) for n in range(12) for right in (True, False)])
    assert {item.text.partition(",")[0] for item in pool.items} == {
        'When the result has "status: pending"',
        'When the result has "status: shipped"',
    }


def page(number: int, sign: str, verb: str, score: float) -> Trajectory:
    """One call at a page that shows a sign and a door."""
    calls = [("find", f"n{number}", f"{sign}\nDoor: d{number}"), (verb, f"d{number}", "Kept.")]
    return played(f"{sign}{verb}{number}", f"Seek n{number}", calls, score)


def test_a_rule_about_many_pages_must_hold_on_pages_that_look_alike() -> None:
    """Whoever pulls or pushes at Hidden wins; at Sealed hardly anyone wins and no one pulls."""
    made = [
        page(n, "Hidden.", verb, 1.0) for verb, first in (("pull", 0), ("push", 12)) for n in range(first, first + 12)
    ]
    made += [
        page(n, "Sealed.", verb, float(n % 6 == 0))
        for verb, first in (("ask", 24), ("open", 36))
        for n in range(first, first + 12)
    ]
    wide = 'When you see "Door:", pull the name after "Door:".'

    def found(config: ExtractConfig, pool: ExperiencePool) -> tuple[PoolEdit, ...]:
        return contrast_with(made, pool, config, 1, ())

    over_all = found(CONFIG, empty(50))
    assert wide in [edit.item.text for edit in over_all if edit.item]  # 12 of 12 against 16 of 36
    within = CONFIG.model_copy(update={"within": True})
    assert not [edit for edit in found(within, empty(50)) if edit.item]
    (item,) = (edit.item for edit in over_all if edit.item and edit.item.text == wide)
    gone = [
        target for edit in found(within, empty(50).apply(over_all)) if edit.op == "DELETE" for target in edit.targets
    ]
    assert item.id in gone


def test_a_rule_that_holds_on_every_page_holds_within_them() -> None:
    made = [
        page(20 * n + m, sign, "open" if m < 10 else "ask", float(m < 10))
        for n, sign in enumerate(("Hidden.", "Sealed."))
        for m in range(20)
    ]
    edits = contrast_with(made, empty(50), CONFIG.model_copy(update={"within": True}), 1, ())
    assert 'When you see "Door:", open the name after "Door:".' in [edit.item.text for edit in edits if edit.item]


def test_a_rule_says_nothing_of_pages_where_nobody_followed_it() -> None:
    """At Sealed asking wins and opening loses; at three other signs no one asks."""
    made = [page(n, "Sealed.", "ask" if n < 10 else "open", float(n < 10)) for n in range(20)]
    made += [page(20 + n, sign, "open", float(n % 3 == 0)) for sign in ("Busy.", "Lent.", "Damp.") for n in range(12)]
    edits = contrast_with(made, empty(50), CONFIG.model_copy(update={"within": True}), 1, ())
    said = [edit.item.text for edit in edits if edit.item]
    assert 'When you see "Sealed.", ask the name after "Door:".' in said
    assert 'When you see "Door:", ask the name after "Door:".' not in said


def test_a_rule_that_nearly_everyone_follows_by_now_stays() -> None:
    """Its p grows, because hardly anyone does otherwise; its lift does not fall."""
    many = [page(n, "Sealed.", "ask" if n < 10 else "open", float(n < 10)) for n in range(20)]
    few = [page(n, "Sealed.", "ask" if n < 17 else "open", float(n % 2 == 0 and n < 17)) for n in range(20)]
    for within, stays in ((True, True), (False, False)):
        config = CONFIG.model_copy(update={"within": within})
        pool = empty(50).apply(contrast_with(many, empty(50), config, 1, ()))
        deleted = {target for e in contrast_with(few, pool, config, 2, ()) if e.op == "DELETE" for target in e.targets}
        (item,) = (item for item in pool.items if ", ask" in item.text)
        assert (item.id not in deleted) == stays


def test_a_rule_that_cannot_be_compared_is_neither_added_nor_deleted() -> None:
    """Everyone asks at Sealed and nobody at Busy: no page shows what comes of doing otherwise there."""
    made = [page(n, "Sealed.", "ask", 1.0) for n in range(10)] + [page(n, "Busy.", "open", 0.0) for n in range(10, 20)]
    within = CONFIG.model_copy(update={"within": True})
    assert not [e for e in contrast_with(made, empty(50), within, 1, ()) if e.op == "ADD"]
    pool = empty(50).apply(contrast_with(made, empty(50), CONFIG, 1, ()))
    assert any(", ask" in item.text for item in pool.items)
    assert not [e for e in contrast_with(made, pool, within, 2, ()) if e.op == "DELETE"]
