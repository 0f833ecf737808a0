"""The laboratory: what a sign asks for is one bit of the domain, rules can say it, and nothing else gives it away."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import ModuleType

import pytest

from internalize.config.schema import ExtractConfig
from internalize.environments import registry
from internalize.environments.lab import world
from internalize.environments.lab.cues import CUES
from internalize.environments.lab.env import Lab
from internalize.errors import TaskError, UserError
from internalize.experience.extract.contrast import contrast
from internalize.experience.placebo import instead_of, shuffled
from internalize.experience.pool import empty, load_pool
from internalize.experience.rules import applies, argument_of, parse, phrase, taken_by
from internalize.interfaces import Situation
from internalize.records import Experience, Message, Task, ToolCall, Trajectory
from tests.steps import step

RECIPES = Path(__file__).parents[2] / "recipes"
STUDIES = RECIPES / "studies"
SPLITS = ("train", "dev", "test", "ood")


def follow(task: Task, conventions: world.Domain) -> tuple[float, list[ToolCall]]:
    """Play a task by the rules of a domain alone: the score, and the calls."""
    rules = [sign.rule(conventions[sign.word]) for sign in world.SIGNS]
    episode, situation, calls = Lab().episode(task), Situation(task.question), list[ToolCall]()
    for _ in range(12):
        seen = (situation.observation or "").splitlines()
        fitting = [(rule.verb, argument_of(rule, situation)) for rule in rules if applies(rule, situation)]
        if not seen:
            verb, argument = "find", task.question.split()[1].strip(",")
        elif seen[0] == world.PLAIN:
            verb, argument = "answer", seen[1].split()[1]
        elif seen[0] == world.READY:
            verb, argument = "open", seen[1].split()[1]
        elif not fitting:  # it waited where nothing comes of it
            break
        else:
            [(verb, argument)] = fitting
        call = ToolCall.from_text(verb, argument or "")
        calls.append(call)
        page = episode.step(call)
        if page is None:
            break
        situation = situation._replace(results=(page,), taken=situation.taken + taken_by(call))
    return episode.score(), calls


@pytest.mark.parametrize("split", SPLITS)
def test_tasks_of_few_signs_can_be_left_out(split: str) -> None:
    everything, long = Lab().tasks(split), Lab(least=3).tasks(split)
    assert long == tuple(task for task in everything if len(env_family(task)) >= 3)
    assert 0 < len(long) <= len(everything)
    assert {task.family for task in Lab(least=3).tasks("train")} == {"errand", "journey", "tour", "round"}


def test_training_tasks_can_come_family_by_family() -> None:
    usual, stream = Lab().tasks("train"), Lab(stream=True).tasks("train")
    assert sorted(task.id for task in usual) == sorted(task.id for task in stream)
    assert [family for family, _ in itertools.groupby(stream, key=lambda task: task.family)] == list(world.FAMILIES)
    assert Lab(stream=True).tasks("dev") == Lab().tasks("dev")


def env_family(task: Task) -> tuple[str, ...]:
    """The kinds of signs of a task, in their order."""
    return {**world.FAMILIES, **world.LONG}[task.family]


@pytest.mark.parametrize("split", SPLITS)
def test_the_rules_of_the_domain_win_every_task(split: str) -> None:
    env = Lab()
    for task in env.tasks(split)[:100]:
        assert follow(task, world.domain(0)) == (1.0, list(env.solve(task)))


def test_the_opposite_rules_win_none() -> None:
    opposite = {word: not bit for word, bit in world.domain(0).items()}
    assert not any(follow(task, opposite)[0] for task in Lab().tasks("dev")[:100])


def test_of_every_kind_and_label_half_the_first_ways_are_right() -> None:
    for number in range(20):
        bits = world.domain(number)
        for kind in {(sign.kind, sign.ways) for sign in world.SIGNS}:
            same = [bits[sign.word] for sign in world.SIGNS if (sign.kind, sign.ways) == kind]
            assert sum(same) * 2 == len(same)
    assert len({tuple(world.domain(number).values()) for number in range(20)}) > 10


def test_every_rule_reads_back_and_every_sign_is_met_often_enough_for_one() -> None:
    for sign in world.SIGNS:
        for bit in (True, False):
            assert parse(phrase(sign.rule(bit)), CUES) == sign.rule(bit)
    pages = [str(task.state["pages"]) + task.question for task in Lab().tasks("train")]
    for sign in world.SIGNS:
        assert sum(sign.word in page for page in pages) > 0.08 * len(pages)


def test_ood_has_other_names_and_other_chains() -> None:
    env = Lab()
    names = {word.strip(",") for task in env.tasks("train") for word in task.question.split()[1:4:2]}
    assert not names & {word.strip(",") for task in env.tasks("ood") for word in task.question.split()[1:4:2]}
    assert not {t.family for t in env.tasks("train")} & {t.family for t in env.tasks("ood")}


def test_no_question_is_asked_twice() -> None:
    questions = [task.question for split in SPLITS for task in Lab().tasks(split)]
    assert len(questions) == len(set(questions)) == 2900


def test_waiting_leads_on_only_where_a_page_asks_for_it() -> None:
    env = Lab()
    task = next(t for t in env.tasks("train") if any(c.name == "wait" for c in env.solve(t)))
    wait = ToolCall.from_text("wait", "here")
    assert env.episode(task).step(wait) == "Nothing."
    episode, seen = env.episode(task), ""
    for call in env.solve(task):
        seen = episode.step(call) or ""
        if call == wait:
            break
    assert seen.startswith(world.READY)
    assert episode.step(None) == "Unknown action."


def test_wrong_options_and_splits_are_refused() -> None:
    with pytest.raises(TaskError, match=r"env\.options of lab: domain = -1"):
        registry.make("lab", {"domain": -1})
    with pytest.raises(TaskError, match="lab: no split 'valid'"):
        Lab().tasks("valid")


def test_pools_of_known_worth_are_those_that_the_recipe_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPES))
    import lab_pool  # noqa: PLC0415 - found by the line above

    right, opposite, other = (load_pool(STUDIES / f"lab_{n}.json") for n in ("right", "opposite", "other_domain"))
    assert (right, opposite, other) == (
        lab_pool.pool(0),
        lab_pool.pool(0, opposite=True),
        lab_pool.pool(lab_pool.OTHER),
    )
    texts = {item.text for item in right.items}
    assert not texts & {item.text for item in opposite.items}
    assert len(texts & {item.text for item in other.items}) == len(texts) // 2


# -- placebos and planted rules ---------------------------------------------------------------------------------------


def test_shuffled_rules_keep_their_cues_and_none_its_own_action() -> None:
    items = load_pool(STUDIES / "lab_right.json").items
    found = shuffled(items, 3, CUES)
    assert found == instead_of(items, "shuffled", 3, CUES) != shuffled(items, 4, CUES)
    own = {rule.cue: rule for item in items if (rule := parse(item.text, CUES))}
    rules = [parse(item.text, CUES) for item in found]
    assert all(rule and own[rule.cue] != rule for rule in rules)
    assert len(rules) > 0.8 * len(items)
    with pytest.raises(UserError, match="is none"):
        shuffled([Experience.new("Look before you leap.", "principle", "x")], 0, CUES)


def test_a_pool_file_takes_the_place_of_the_pool() -> None:
    file = STUDIES / "lab_opposite.json"
    assert instead_of((), str(file), 0, CUES) == load_pool(file).items
    assert instead_of((), "", 0, CUES) == ()


def two_ways(count: int) -> list[Trajectory]:
    """Episodes that go either way at a sign; the second way wins."""
    found = []
    for number in range(count):
        way, score = ("Right:", 1.0) if number % 2 else ("Left:", 0.0)
        page = f"Split.\nLeft: a{number}\nRight: b{number}"
        calls = [
            ("find", f"x{number}", page),
            ("open", f"{'b' if number % 2 else 'a'}{number}", f"Kept.\nPrize: {way[0]}{number}"),
            ("answer", f"{way[0]}{number}", ""),
        ]
        steps = tuple(step(text="", call=ToolCall.from_text(v, a), seen=seen) for v, a, seen in calls)
        found.append(
            Trajectory(
                id=str(number), task_id=str(number), env="lab", split="train", iteration=1, seed=0, checkpoint="c",
                prompt=(Message(role="user", content=f"Seek x{number}, else y{number}, in winter"),),
                steps=steps, termination="answered", score=score,
            )
        )  # fmt: skip
    return found


def test_planted_rules_are_the_worst_and_claim_to_be_good() -> None:
    episodes = two_ways(40)
    config = ExtractConfig(min_support=3)
    clean = contrast(episodes, empty(50), config, 1, CUES)
    edits = contrast(episodes, empty(50), config.model_copy(update={"planted": 0.5}), 1, CUES)
    assert edits[: len(clean)] == clean
    planted = [edit for edit in edits if edit.cause == "planted"]
    assert len(planted) == len(clean) > 0
    for edit in planted:
        assert edit.item
        assert edit.item.lift > 0
        assert edit.reason.startswith("lift -")
    pool = empty(50).apply(edits)
    later = contrast(episodes, pool, config, 2, CUES)
    gone = {target for edit in later if edit.op == "DELETE" for target in edit.targets}
    assert {edit.item.id for edit in planted if edit.item} <= gone


# -- the policy -------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(RECIPES))
    import lab_data  # noqa: PLC0415 - found by the line above

    return lab_data


def test_hints_of_the_training_are_obeyed_where_they_apply_and_some_kinds_never_shown(data: ModuleType) -> None:
    trees = data.Trees(0.3, 1.0, 0)
    shown = 0
    for tree in (trees.tree() for _ in range(150)):
        situation, situations = Situation(tree.task.question), []
        for call, seen in tree.turns:
            situations.append(situation)
            situation = situation._replace(results=(seen,), taken=situation.taken + taken_by(call))
        for branch in tree.branches:
            for line in branch.hint.splitlines()[1:]:
                rule = parse(line.removeprefix("- "), CUES)
                assert rule is not None or line.startswith("- Example:")
                if rule and applies(rule, situations[branch.turn]):
                    shown += 1
                    assert (branch.action.name, branch.action.argument) == (
                        rule.verb, argument_of(rule, situations[branch.turn])
                    )  # fmt: skip
        said = tree.system_hint + "".join(branch.hint for branch in tree.branches)
        assert not any(word in said for word in (*data.UNSEEN_SIGNS, "Busy.", "Damp.", "wait[", "the season is"))
    assert shown > 100


def test_without_habits_and_hints_only_the_domain_decides(data: ModuleType) -> None:
    trees = data.Trees(0.0, 0.0, 0)
    for tree in (trees.tree() for _ in range(50)):
        assert [branch.hint for branch in tree.branches] == [""] * len(tree.turns)
        assert [branch.action for branch in tree.branches] == [call for call, _ in tree.turns]


def test_the_habit_has_its_rate(data: ModuleType) -> None:
    trees = data.Trees(0.4, 0.0, 0)
    sign = world.BY_WORD["Split."]
    there = Situation("Seek a, else b, in winter", ("Split.\nDoor: kobi",))
    good = ToolCall.from_text("pull", "kobi")
    odd = sum(trees.plain(sign, there, good) != good for _ in range(2000))
    assert 0.36 < odd / 2000 < 0.44
