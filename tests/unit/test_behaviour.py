import math

from internalize.evaluation.behaviour import Behaviour
from internalize.records import Injection, Message, Trajectory
from tests.steps import step


def episode(*actions, shown=(), score=1.0):
    """One step an action; `shown` are the items of the first steps."""
    hints = [Injection(item_ids=ids, text="x", served_by="lexical") if ids else None for ids in shown]
    hints += [None] * (len(actions) - len(hints))
    steps = tuple(step(text=a, call=None, injection=h) for a, h in zip(actions, hints, strict=True))
    return Trajectory(
        id="t", task_id="q", env="docs", split="dev", iteration=0, seed=0, checkpoint="c",
        prompt=(Message(role="user", content="?"),), steps=steps,
        termination="failed" if score is None else "answered", score=score, failure="lost" if score is None else None,
    )  # fmt: skip


def test_an_action_repeats_one_of_its_own_episode_only():
    both = Behaviour.of(episode("search[a]", "search[b]", "search[a]", "search[a]")).plus(
        Behaviour.of(episode("search[a]"))
    )
    assert (both.episodes, both.steps, both.repeated) == (2, 5, 2)
    assert both.repetition == 0.4


def test_spread_by_hand():
    even = Behaviour.of(episode("a", "b", shown=(("i", "j"), ("k", "l"))))
    assert math.isclose(even.spread, 4.0)
    skewed = Behaviour(shown={"i": 3, "j": 1})  # shares 3/4, 1/4: entropy 0.5623 nats
    assert math.isclose(skewed.spread, 1.7548, rel_tol=1e-4)
    assert math.isclose(Behaviour(shown={"i": 7}).spread, 1.0)


def test_nothing_counted_is_none_and_a_broken_episode_is_not_counted():
    assert Behaviour().repetition is None
    assert Behaviour().spread is None
    assert Behaviour.of(episode("a", "a", score=None)) == Behaviour()
