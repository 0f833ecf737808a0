"""Games of TextArena, as they are published: played to the end, the same again, and never in two splits."""

from __future__ import annotations

import itertools
import random
import re
from typing import Any

import pytest

from internalize.environments import registry
from internalize.environments.adapters.textarena import TextArena, TextArenaEpisode
from internalize.environments.validate import validate
from internalize.errors import InfrastructureError, TaskError
from internalize.interfaces import Episode
from internalize.records import Task, ToolCall

pytest.importorskip("textarena")
pytestmark = pytest.mark.slow  # the package takes seconds to load


def game(name: str, **options: Any) -> TextArena:
    env = registry.make(f"textarena:{name}", options)
    assert isinstance(env, TextArena)
    return env


def first(env: TextArena) -> Task:
    return next(task for split in env.splits() for task in env.tasks(split))


def move(text: str) -> ToolCall:
    return ToolCall.of("move", text=text)


def search(episode: Episode) -> float | None:
    """Halves the numbers from 1 to 20."""
    low, high = 1, 20
    while (seen := episode.step(move(str(guess := (low + high) // 2)))) is not None:
        low, high = (low, guess - 1) if "lower" in seen else (guess + 1, high)
    return episode.score()


def crack(episode: Episode) -> float | None:
    """Guesses the next code that every answer so far allows."""
    answers: list[tuple[tuple[int, ...], tuple[int, int]]] = []
    for code in itertools.permutations(range(1, 7), 4):
        if all(pegs(code, guess) == answer for guess, answer in answers):
            seen = episode.step(move(" ".join(map(str, code))))
            if seen is None:
                break
            found = re.search(r"(\d+) black peg\(s\), (\d+) white", seen)
            assert found, seen
            answers.append((code, (int(found[1]), int(found[2]))))
    return episode.score()


def pegs(code: tuple[int, ...], guess: tuple[int, ...]) -> tuple[int, int]:
    black = sum(a == b for a, b in zip(code, guess, strict=True))
    return black, len({*code} & {*guess}) - black


def test_two_published_games_are_won_by_those_who_can() -> None:
    numbers = game("GuessTheNumber-v0", seeds=60)
    assert {search(numbers.episode(task)) for split in numbers.splits() for task in numbers.tasks(split)} == {1.0}
    codes = game("Mastermind-v0", seeds=12)
    assert {crack(codes.episode(task)) for split in codes.splits() for task in codes.tasks(split)} == {1.0}


def test_equal_games_are_one_task_in_one_split() -> None:
    """There are twenty numbers to guess, so that many tasks, whatever the number of seeds."""
    env = game("GuessTheNumber-v0", seeds=300)
    tasks = [task for split in env.splits() for task in env.tasks(split)]
    assert len(tasks) == len({task.id for task in tasks}) == 20
    hidden = [env.episode(task)._play._env.state.game_state["game_number"] for task in tasks]  # type: ignore[attr-defined]
    assert sorted(hidden) == list(range(1, 21))


def test_episodes_do_not_disturb_each_other_or_the_program() -> None:
    """A game that draws while it is played, alone and beside others: the same."""
    env = game("2048-v0", seeds=2)
    moves = ["up", "left", "down", "right"] * 4

    def play(episode: Episode) -> list[str | None]:
        return [episode.step(move(text)) for text in moves]

    random.seed(5)
    expected, untouched = play(env.episode(first(env))), random.random()
    random.seed(5)
    one, other = env.episode(first(env)), env.episode(first(env))
    seen = [(one.step(move(text)), other.step(move(text)), env.episode(first(env)).prompt())[:2] for text in moves]
    assert [a for a, _ in seen] == [b for _, b in seen] == expected
    assert random.random() == untouched


def test_a_lost_game_is_zero_and_a_reward_beyond_the_best_is_no_score() -> None:
    env = game("Mastermind-v0", seeds=1)
    episode = env.episode(first(env))
    assert episode.step(move("no numbers")) is not None, "one invalid move is forgiven"
    assert episode.step(None) == "Unknown action."
    while episode.step(move("no numbers")) is not None:
        pass
    assert episode.score() == 0.0
    easy = game("GuessTheNumber-v0", seeds=1, best=0.5)
    with pytest.raises(InfrastructureError, match="reward 1 is above"):
        search(easy.episode(first(easy)))


class Drawn:
    """A game that ends with its second move and says nothing of who won."""

    first = "Your move."

    def __init__(self) -> None:
        self.moves = 0

    def send(self, text: str) -> tuple[str, bool]:
        self.moves += 1
        return "And?", self.moves == 2

    def reward(self) -> None:
        """None."""


def test_a_game_that_ends_without_a_reward_is_unscored_and_an_unfinished_one_is_zero() -> None:
    episode = TextArenaEpisode("textarena:Drawn", Drawn(), 1.0)  # type: ignore[arg-type]
    assert episode.step(move("one")) == "And?"
    assert episode.score() == 0.0
    assert episode.step(move("two")) is None
    assert episode.score() is None


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("TicTacToe-v0", {}, "cannot be played by one player"),
        ("Nothing-v0", {}, "not found"),
        ("Mastermind-v0", {"seeds": 0}, "seeds"),
        ("Mastermind-v0", {"game": {"colour": 3}}, "cannot be played"),
    ],
)
def test_what_cannot_be_carried_over_is_refused(name: str, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(TaskError, match=problem):
        game(name, **options)


def test_options_of_a_game() -> None:
    env = game("Mastermind-v0", seeds=3, game={"code_length": 2})
    assert "2 digits long" in first(env).question


def test_the_checks_of_every_environment_find_nothing() -> None:
    env = game("Mastermind-v0", seeds=20)
    rows = list(validate(env, env.splits()))
    assert rows
    assert not any(row.failed for row in rows), rows
    assert ("textarena:NAME", "single-player games of TextArena") in registry.listing()
