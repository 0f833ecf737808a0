"""Environments of gymnasium, as published: won by those who can, the same again, never in two splits."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("gymnasium", reason="needs the extra 'gymnasium'")

import gymnasium
from gymnasium import spaces

from internalize.environments import registry
from internalize.environments.adapters.gymnasium import Gymnasium
from internalize.environments.validate import validate
from internalize.errors import InfrastructureError, TaskError
from internalize.interfaces import Episode
from internalize.records import Task, ToolCall

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def made(name: str, **options: Any) -> Gymnasium:
    env = registry.make(f"gymnasium:{name}", options)
    assert isinstance(env, Gymnasium)
    return env


def every(env: Gymnasium) -> list[Task]:
    return [task for split in env.splits() for task in env.tasks(split)]


def act(action: Any) -> ToolCall:
    return ToolCall.of("act", action=action)


class Echo(gymnasium.Env):  # type: ignore[misc]
    """Say a word back.

    ## Description
    You are told a word.

    ## Action Space
    Say the word.

    ## Rewards
    Not shown.
    """

    def __init__(self, *, seeded: bool = True, reward: float = 1.0, actions: Any = None, observations: Any = None):
        self.action_space = actions or spaces.Text(20)
        self.observation_space = observations or spaces.Text(20)
        self._seeded, self._reward, self._count = seeded, reward, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed if self._seeded else None)
        self.word = "".join("abcdefgh"[n] for n in self.np_random.integers(0, 8, 3))
        return self.word, {}

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if action == "break":
            raise RuntimeError("it broke")
        right = action == self.word
        return "No.", self._reward * right, right, False, {}


gymnasium.register("InternalizeEcho-v0", entry_point=Echo, max_episode_steps=4)


def taxi_moves(episode: Episode) -> Iterator[int]:
    """The shortest way to the passenger, then to the hotel: places are told apart by their numbers alone."""
    env = episode._play.env.unwrapped  # type: ignore[attr-defined]
    start = env.s
    came: dict[int, tuple[int, int] | None] = {start: None}
    todo = deque([start])
    while todo:
        state = todo.popleft()
        for move in range(6):
            _, following, reward, over = env.P[state][move][0]
            if over and reward == 20:
                path, here = [move], state
                while (before := came[here]) is not None:
                    here, step = before
                    path.append(step)
                return iter(path[::-1])
            if following not in came:
                came[following] = (state, move)
                todo.append(following)
    raise AssertionError("no way")


def test_a_taxi_is_driven_as_its_documentation_says() -> None:
    env = made("Taxi-v4", score="last", best=20, seeds=40)
    assert len(every(env)) > 30
    for task in every(env)[:5]:
        episode = env.episode(task)
        system, question = episode.prompt()
        assert "Pickup passenger" in system.text
        assert "+---------+" in question.text
        moves = list(taxi_moves(episode))
        seen = [episode.step(act(move)) for move in moves]
        assert seen[-1] is None
        assert None not in seen[:-1]
        assert episode.score() == 1.0
        wrong = env.episode(task)
        assert wrong.step(act(4)) is not None
        assert wrong.score() == 0.0


def test_a_lake_is_crossed_by_its_picture() -> None:
    """Without slipping all seeds are one game; the player's place is the one in brackets."""
    env = made("FrozenLake-v1", env={"is_slippery": False})
    (task,) = every(env)
    episode = env.episode(task)
    assert re.search(r"^\[S\]FFF$", episode.prompt()[1].text, re.MULTILINE)
    assert "FHFH" in str(episode.step(act(2)))
    assert [episode.step(act(move)) is None for move in (2, 1, 1, 1, 2)] == [False, False, False, False, True]
    assert episode.score() == 1.0
    drowned = env.episode(task)
    assert [drowned.step(act(move)) is None for move in (2, 1)] == [False, True]
    assert drowned.score() == 0.0


def test_cards_and_cliffs_play_too() -> None:
    cards = made("Blackjack-v1", seeds=60)
    scores = set()
    for task in every(cards)[:25]:
        episode = cards.episode(task)
        assert episode.step(act(0)) is None
        scores.add(episode.score())
    assert scores == {0.0, 1.0}
    cliff = made("CliffWalking-v1", score="terminated", seeds=3)
    (task,) = every(cliff)
    episode = cliff.episode(task)
    walked = [episode.step(act(move)) for move in (0, *([1] * 11), 2)]
    assert walked[-1] is None
    assert episode.score() == 1.0


def test_text_spaces_are_spoken_as_they_are() -> None:
    env = made("InternalizeEcho-v0", seeds=20)
    task = every(env)[0]
    episode = env.episode(task)
    assert episode.prompt()[1].text == task.question
    assert "Say the word." in episode.prompt()[0].text
    assert "Not shown" not in episode.prompt()[0].text
    assert episode.step(act("wrong")) == "No."
    assert episode.step(act(task.question)) is None
    assert episode.score() == 1.0
    with pytest.raises(InfrastructureError, match="single-use"):
        episode.step(act("more"))


def test_the_limit_of_steps_is_the_environments_own_and_what_is_no_action_does_nothing() -> None:
    env = made("InternalizeEcho-v0", seeds=2)
    episode = env.episode(every(env)[0])
    for call in (None, ToolCall.of("else", action="x"), ToolCall.of("act", text="x"), act("x" * 30)):
        assert episode.step(call) is not None
    assert [episode.step(act("wrong")) for _ in range(4)] == ["No."] * 3 + [None]
    assert episode.score() == 0.0
    cards = made("Blackjack-v1", seeds=2)
    playing = cards.episode(every(cards)[0])
    for wrong in (7, "hit", None, [1], {"a": 1}):
        assert str(playing.step(act(wrong))).startswith("No such action.")


def test_one_that_breaks_and_one_beyond_the_best_give_no_score() -> None:
    env = made("InternalizeEcho-v0", seeds=2)
    with pytest.raises(InfrastructureError, match="RuntimeError: it broke"):
        env.episode(every(env)[0]).step(act("break"))
    rich = made("InternalizeEcho-v0", seeds=2, env={"reward": 3.0})
    episode = rich.episode(every(rich)[0])
    episode.step(act(every(rich)[0].question))
    with pytest.raises(InfrastructureError, match="the reward 3 is above"):
        episode.score()


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("Nothing-v0", {}, "cannot be made"),
        ("Taxi-v4", {"seeds": 0}, "seeds"),
        ("Taxi-v4", {"env": {"wheels": 4}}, "cannot be made"),
        ("InternalizeEcho-v0", {"env": {"seeded": False}}, "plays differently under one seed"),
        ("InternalizeEcho-v0", {"env": {"actions": spaces.Box(-1, 1, (30,))}}, "its actions are Box"),
        ("InternalizeEcho-v0", {"env": {"observations": spaces.Box(0, 255, (64, 64, 3))}}, "12288 numbers"),
        ("InternalizeEcho-v0", {"env": {"observations": spaces.Sequence(spaces.Discrete(2))}}, "its observations are"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        made(name, **options)


def test_actions_of_several_parts() -> None:
    both = spaces.Dict({"word": spaces.Text(3), "times": spaces.MultiDiscrete([3, 3])})
    env = made("InternalizeEcho-v0", seeds=2, env={"actions": both})
    (tool,) = env.tools
    assert tool.parameters is not None
    assert tool.parameters["required"] == ["times", "word"]
    episode = env.episode(every(env)[0])
    assert episode.step(ToolCall.of("act", word="a", times=[1, 2])) == "No."
    assert str(episode.step(ToolCall.of("act", word="a", times=[1, 9]))).startswith("No such action.")
    assert str(episode.step(ToolCall.of("act", word="a"))).startswith("No such action.")


def test_the_checks_of_every_environment_find_nothing() -> None:
    env = made("Taxi-v4", score="last", best=20, seeds=30)
    rows = list(validate(env, env.splits()))
    assert rows
    assert not any(row.failed for row in rows), rows
    assert ("gymnasium:NAME", "environments of gymnasium in text") in registry.listing()
