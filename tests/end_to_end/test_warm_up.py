"""What warm-ups imitate: experts that win, habits that differ from them, hints that are obeyed where they apply."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType

import pytest

from internalize.experience.rules import applies, matches, parse
from internalize.interfaces import Situation

RECIPES = Path(__file__).parents[2] / "recipes"
KITCHEN = (
    "You are in the kitchen.\nThere is also an oven.\nTo the East you see the pantry.\nTo the West you see the hall."
)
PANTRY = "You are in the pantry.\nYou also see a coin.\nTo the West you see the kitchen."
HALL = "You are in the hall.\nTo the East you see the kitchen."


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("inspect_evals", reason="the extra tau2 is not installed")
    monkeypatch.syspath_prepend(str(RECIPES))
    import warm_up_data  # noqa: PLC0415 - found by the line above

    return warm_up_data


def test_the_support_agent_repairs_every_ticket_of_two_faults(data: ModuleType) -> None:
    from internalize.environments.tau2.env import Tau2  # noqa: PLC0415

    env = Tau2("two_faults")
    for task in env.tasks("dev") + env.tasks("test"):
        episode = env.episode(task)
        list(data.tau2_expert.play(episode.prompt()[1].content, episode.step))
        assert episode.score() == 1.0, task.state["tau2_id"]


def test_hints_are_obeyed_where_they_apply_and_ignored_elsewhere(data: ModuleType) -> None:
    _, walked = data.WALKS["tau2"]()
    walks = [walk for walk, _ in zip(walked, range(20), strict=False)]
    rng = random.Random(0)
    hints = data.Hints(walks, rng)
    seen = {True: 0, False: 0}
    for walk in walks:
        situations = [situation for situation, _ in data.decided(walk)]
        for branch in data.branches(walk, hints, rng, data.impatient):
            rules = [parse(line.removeprefix("- ")) for line in branch.hint.splitlines()[1:]]
            assert None not in rules
            there = [rule for rule in rules if rule and applies(rule, situations[branch.turn])]
            assert all(matches(rule, situations[branch.turn], branch.action) for rule in there)
            seen[bool(there)] += bool(rules)
    assert min(seen.values()) >= 10


def test_the_searcher_goes_where_it_has_not_been(data: ModuleType) -> None:
    searcher = data.coin_expert.Searcher()
    commands = [searcher.next(seen) for seen in (KITCHEN, HALL, KITCHEN, PANTRY)]
    assert commands == ["move east", "move east", "move east", "take coin"]
    searcher = data.coin_expert.Searcher()
    assert [searcher.next(seen) for seen in (KITCHEN, PANTRY.replace("coin", "pan"), KITCHEN)][2] == "move west"


def test_the_aimless_one_overlooks_the_coin(data: ModuleType) -> None:
    rng, take = random.Random(0), data.coin_expert.act("take coin")
    taken = sum(data.aimless(Situation("", (PANTRY,)), take, None, rng) == take for _ in range(300))
    assert 60 < taken < 130
