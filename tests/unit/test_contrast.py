from internalize.config.schema import ExtractConfig
from internalize.experience.extract.contrast import contrast
from internalize.experience.pool import empty
from internalize.records import Message, Trajectory
from tests.steps import act, step

CONFIG = ExtractConfig(min_support=3)


def episode(number: int, *, follow: bool, score: float | None, failure: str | None = None) -> Trajectory:
    """Search, visit a page that is an alias, then follow it or answer at once."""
    name, target = f"pkg.mod{number}.f", f"other.m{number}.g"
    actions = [("search", name, f"Found:\n1. {name}"), ("visit", name, f"{name} (alias)\nAlias of {target}")]
    if follow:
        actions.append(("visit", target, f"{target} (function)\nParameters: p{number}={number}"))
    actions.append(("answer", str(number) if follow else "None", ""))
    question = f"What is the default of p{number} in the function {name}?"
    steps = tuple(step(text=f"{verb}[{a}]", call=act(verb, a), seen=seen) for verb, a, seen in actions)
    return Trajectory(
        id=f"t{number}{follow}{score}", task_id=f"q{number}", env="docs", split="train", iteration=1, seed=0,
        checkpoint="c", prompt=(Message(role="user", content=question),), steps=steps, termination="answered",
        score=score, failure=failure,
    )  # fmt: skip


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
    actions = [("check", f"{seen}\nBattery: {number}%"), (fix if right else wrong, "Done.")]
    steps = tuple(step(text=f"{name}[]", call=act(name, "{}"), seen=said) for name, said in actions)
    return Trajectory(
        id=f"r{number}{right}", task_id=f"p{number}", env="phone", split="train", iteration=1, seed=0, checkpoint="c",
        prompt=(Message(role="user", content="The phone does not work."),), steps=steps, termination="answered",
        score=float(right),
    )  # fmt: skip


def test_calls_without_arguments_and_whole_lines_make_rules_even_if_all_tasks_ask_the_same() -> None:
    episodes = [repair(n, right=right) for n in range(10) for right in (True, False)]
    texts = {edit.item.text for edit in contrast(episodes, empty(10), CONFIG, 1) if edit.item}
    assert any(text.endswith(': ON", toggle_airplane[].') for text in texts)
    assert any(text.endswith(': OFF", toggle_data[].') for text in texts)
    assert not any("Battery: " in text and "%" in text for text in texts)  # a line of one task is no cue
