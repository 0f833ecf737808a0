"""What text games share: the two tools, what is said after a wrong command, kept references. No Java is needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from internalize.environments.text_games.episode import (
    LISTED,
    SUGGESTED,
    Answer,
    TextEpisode,
    cut,
    listing,
    nearest,
    walk,
    with_looks,
)
from internalize.environments.text_games.reference_cache import ReferenceCache
from internalize.environments.text_games.textworld_express import in_lines
from internalize.errors import InfrastructureError
from internalize.records import ToolCall

POSSIBLE = ("look around", "open door to kitchen", "open fridge", "take coin", "take key")


class FakeGame:
    """Won by taking the coin, lost by taking the key; counts how often it was asked what is possible."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = 0

    def start(self) -> tuple[str, str]:
        return "Find  the coin.", "You are in\n\n the   kitchen."

    def send(self, command: str) -> Answer:
        if command in {"take coin", "take key"}:
            return Answer("Taken.", float(command == "take coin"), over=True)
        return Answer(f"You {command}.", 0.25, over=False, understood=command in POSSIBLE)

    def possible(self) -> Sequence[str]:
        self.asked += 1
        return POSSIBLE

    def close(self) -> None:
        self.closed += 1


def act(command: str) -> ToolCall:
    return ToolCall.of("act", command=command)


@pytest.fixture
def game() -> FakeGame:
    return FakeGame()


@pytest.fixture
def episode(game: FakeGame) -> TextEpisode:
    return TextEpisode("fake", game, longest=200)


def test_the_prompt_holds_the_task_and_what_is_seen(episode: TextEpisode) -> None:
    assert [message.role for message in episode.prompt()] == ["system", "user"]
    assert episode.prompt()[1].content == "Find the coin.\nYou are in\nthe kitchen."


def test_winning_and_losing_end_the_episode(game: FakeGame) -> None:
    for command, score in (("take coin", 1.0), ("take key", 0.0)):
        episode = TextEpisode("fake", game, longest=200)
        assert episode.step(act("open fridge")) == "You open fridge."
        assert episode.score() == 0.25
        assert episode.step(act(command)) is None
        assert episode.score() == score
        with pytest.raises(InfrastructureError, match="single-use"):
            episode.step(act(command))


def test_possible_commands_are_fetched_only_when_they_are_needed(episode: TextEpisode, game: FakeGame) -> None:
    episode.step(act("open fridge"))
    episode.step(None)
    assert game.asked == 0
    assert episode.step(act("open the door")) == "You open the door.\nPossible: open door to kitchen, open fridge"
    assert episode.step(act("flee")) == "You flee."
    assert episode.step(ToolCall.of("actions", word="take")) == "Possible: take coin, take key"
    assert game.asked == 3


def test_only_the_two_tools_do_anything(episode: TextEpisode) -> None:
    assert episode.step(ToolCall.of("take", command="coin")) == "Unknown action."
    assert episode.score() == 0.0


def test_closing_gives_the_game_back_and_ends_the_episode(episode: TextEpisode, game: FakeGame) -> None:
    episode.close()
    assert game.closed == 1
    with pytest.raises(InfrastructureError):
        episode.step(act("open fridge"))


def test_nearest_commands_share_words_the_most_shared_first() -> None:
    assert nearest(POSSIBLE, "take a door key") == ["take key", "take coin", "open door to kitchen"]
    assert nearest(POSSIBLE, "xyzzy") == []
    assert len(nearest([f"take thing {n}" for n in range(99)], "take")) == SUGGESTED


def test_listings_are_limited_and_say_how_much_is_left_out() -> None:
    many = [f"take thing {n}" for n in range(LISTED + 5)]
    assert listing(many, "").endswith("and 5 more; name a word")
    assert listing(many, "THING 7") == "Possible: take thing 7"
    assert listing(many, "fly") == "Nothing possible has 'fly' in it."


def test_cut_tidies_and_marks() -> None:
    assert cut("a  b\n\n\tc ", 100) == "a b\nc"
    assert cut("x" * 20, 10) == "x" * 10 + "... (cut)"


def test_the_first_reference_that_was_made_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", str(tmp_path))
    store = ReferenceCache("coin", ["easy"])
    assert store.get("1", lambda: ["look", "take coin"]) == ("look", "take coin")
    assert store.get("1", lambda: ["another way"]) == ("look", "take coin")
    again = ReferenceCache("coin", ["easy"])
    assert again.get("1", lambda: ["another way"]) == ("look", "take coin")
    assert ReferenceCache("coin", ["hard"]).get("1", lambda: ["another way"]) == ("another way",)

    def while_another_process_is_first() -> list[str]:
        ReferenceCache("coin", ["easy"]).get("2", lambda: ["the first way"])
        return ["the second way"]

    assert store.get("2", while_another_process_is_first) == ("the first way",)


def test_a_torn_file_of_references_is_repaired_and_a_spoilt_one_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERNALIZE_CACHE", str(tmp_path))
    store = ReferenceCache("coin", [])
    store.get("1", lambda: ["a"])
    with store.path.open("a", encoding="utf-8") as file:
        file.write('{"task": "2", "comm')
    torn = ReferenceCache("coin", [])
    assert torn.get("1", lambda: ["b"]) == ("a",)
    assert torn.get("2", lambda: ["c"]) == ("c",)
    store.path.write_text("no json\n", encoding="utf-8")
    assert ReferenceCache("coin", []).get("1", lambda: ["d"]) == ("d",)


def test_what_a_game_says_is_one_sentence_a_line() -> None:
    said = "You are in the kitchen. There is a 3.5 kg pan.  To the North you see the pantry."
    assert in_lines(said).splitlines() == [
        "You are in the kitchen.",
        "There is a 3.5 kg pan.",
        "To the North you see the pantry.",
    ]


class Rooms:
    """Three rooms in a row, east of one another."""

    def __init__(self, *, moves: bool = True) -> None:
        self.here, self.sent, self.moves = 0, [], moves
        self.looked: set[int] = set()

    def possible(self) -> list[str]:
        ways = [way for way, there in (("east", self.here < 2), ("west", self.here > 0)) if there]
        return ["look around", *(f"move {way}" for way in ways if self.moves)]

    def send(self, command: str) -> Answer:
        self.sent.append(command)
        if command in self.possible() and command.startswith("move"):
            self.here += 1 if command == "move east" else -1
        if command == "look around":
            self.looked.add(self.here)
        return Answer(f"You are in room {self.here}.\nThere is dust.", 0.0, over=False)


def test_a_walk_sees_every_room_and_ends_where_it_began() -> None:
    rooms = Rooms()
    path = walk(rooms)  # type: ignore[arg-type] # neither start nor close
    assert list(path) == rooms.sent
    assert rooms.here == 0
    assert rooms.looked == {0, 1, 2}
    assert walk(Rooms(moves=False)) == ()  # type: ignore[arg-type]


def test_a_reference_with_looks_shows_each_place_and_does_not_end() -> None:
    path = [act(a) for a in ("go to kitchen", "take coin")]
    looked = [action.values["command"] for action in with_looks(path)]
    assert looked == ["look around", "go to kitchen", "look around"]
