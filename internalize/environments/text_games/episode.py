"""The episode of a text game: its two tools, and suggestions after an unknown command.

Possible commands are fetched only on request or after an unknown command, because that can take longer than a step.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from internalize.environments.base import UNKNOWN, SingleUseEpisode
from internalize.records import ToolCall, ToolSpec

ACT, ACTIONS = "act", "actions"
TOOLS = (
    ToolSpec(name=ACT, argument="command", description="Do something, such as: open door to kitchen."),
    ToolSpec(name=ACTIONS, argument="word", description="List possible commands with a word; takes no time."),
)
SYSTEM = "You play a text game. Do the task."
LONGEST = 900  # characters of an observation
SUGGESTED = 8  # suggestions after an unknown command
LISTED = 30  # commands that `actions` lists at most
_WORD = re.compile(r"[a-z0-9]+")


class Answer(NamedTuple):
    """The answer of a game to a command. `score` in [0, 1]; 1.0 = won."""

    text: str
    score: float
    over: bool
    understood: bool = True


class Game(Protocol):
    """One game."""

    def start(self) -> tuple[str, str]:
        """The task and the first observation."""
        ...

    def send(self, command: str) -> Answer:
        """The answer to a command."""
        ...

    def possible(self) -> Sequence[str]:
        """Every command that makes sense now."""
        ...

    def close(self) -> None:
        """End the game."""
        ...


class TextEpisode(SingleUseEpisode):
    """One game. Ends when it is won or lost."""

    def __init__(self, name: str, game: Game, longest: int) -> None:
        task, first = game.start()
        super().__init__(name, SYSTEM, f"{cut(task, longest)}\n{cut(first, longest)}")
        self._game, self._longest = game, longest
        self._score = 0.0

    def observe(self, call: ToolCall | None) -> str | None:
        """The answer of the game, or None when it is won or lost."""
        if call is None or call.name not in {ACT, ACTIONS}:
            return UNKNOWN
        text = " ".join(call.argument.split())
        if call.name == ACTIONS:
            return cut(listing(self._game.possible(), text), self._longest)
        answer = self._game.send(text)
        self._score = answer.score
        if answer.over:
            return None
        near = [] if answer.understood else nearest(self._game.possible(), text)
        return cut(f"{answer.text}\nPossible: {', '.join(near)}" if near else answer.text, self._longest)

    def score(self) -> float:
        """1.0 if the game is won, else the game's measure of progress."""
        return self._score

    def close(self) -> None:
        """End the episode and its game; closing twice is harmless."""
        self._over = True
        self._game.close()


def listing(possible: Sequence[str], word: str) -> str:
    """The possible commands that contain `word`, at most `LISTED` of them."""
    found = [command for command in possible if word.lower() in command.lower()]
    more = f" and {len(found) - LISTED} more; name a word" if len(found) > LISTED else ""
    return f"Possible: {', '.join(found[:LISTED])}{more}" if found else f"Nothing possible has {word!r} in it."


def nearest(possible: Sequence[str], command: str) -> list[str]:
    """At most `SUGGESTED` possible commands that share the most words with `command`; none if none shares any."""
    words = set(_WORD.findall(command.lower()))
    shared = {other: len(words & set(_WORD.findall(other.lower()))) for other in possible}
    ranked = sorted(
        (other for other in possible if shared[other]), key=lambda other: (-shared[other], len(other), other)
    )
    return ranked[:SUGGESTED]


def cut(text: str, longest: int) -> str:
    """`text` without empty lines and double spaces, at most `longest` characters and a mark."""
    tidy = "\n".join(line for raw in text.splitlines() if (line := " ".join(raw.split())))
    return tidy if len(tidy) <= longest else f"{tidy[:longest]}... (cut)"


def with_looks(calls: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The calls of a reference but the last, each with a look around after it."""
    look = ToolCall.of(ACT, command="look around")
    return (look, *(one for call in calls[:-1] for one in (call, look)))


_BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
_LONGEST_WALK = 200  # commands


def walk(game: Game) -> tuple[str, ...]:
    """Commands that look at every room within reach and end in the first; none in a game without moves."""
    sent: list[str] = []
    if any(command.startswith("move ") for command in game.possible()):
        _walk_on(game, _look(game, sent), sent, set())
    return tuple(sent)


def _walk_on(game: Game, room: str, sent: list[str], seen: set[str]) -> None:
    seen.add(room)
    for door in [command for command in game.possible() if command.startswith("open door")]:
        _send(game, door, sent)
    for move in [command for command in game.possible() if command.startswith("move ")]:
        _send(game, move, sent)
        next_room = _look(game, sent)
        if next_room == room or len(sent) > _LONGEST_WALK:
            continue
        if next_room not in seen:
            _walk_on(game, next_room, sent, seen)
        _send(game, f"move {_BACK.get(move.split()[-1], '')}", sent)


def _look(game: Game, sent: list[str]) -> str:
    """The sentence that names the room."""
    return _send(game, "look around", sent).splitlines()[0]


def _send(game: Game, command: str, sent: list[str]) -> str:
    sent.append(command)
    return game.send(command).text
