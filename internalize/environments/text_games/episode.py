"""What text games in a Java machine have in common: the two tools, the episode, what is said after a wrong command.

Left out: the games (textworld_express.py, scienceworld.py). What must not change: possible commands are fetched only
when they are asked for or a command was not understood, since they can take longer than a step; observations are cut
and say so; a machine that breaks leaves the episode unscored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Message, ToolCall, ToolSpec

ACT, ACTIONS = "act", "actions"
TOOLS = (
    ToolSpec(name=ACT, argument="command", description="Do something, such as: open door to kitchen."),
    ToolSpec(name=ACTIONS, argument="word", description="List possible commands with a word; takes no time."),
)
SYSTEM = "You play a text game. Do the task."
LONGEST = 900  # characters of an observation
SUGGESTED = 8  # commands named after one that was not understood
LISTED = 30  # commands that `actions` lists at most
_WORD = re.compile(r"[a-z0-9]+")


def with_looks(path: Sequence[ToolCall]) -> tuple[ToolCall, ...]:
    """The commands of a reference but the last, each with a look at what is there then."""
    look = ToolCall.of(ACT, command="look around")
    return (look, *(one for action in path[:-1] for one in (action, look)))


def check_limits(name: str, longest: int, timeout: float) -> None:
    """Raises TaskError for limits that leave nothing."""
    if longest < 1:
        raise TaskError(f"{name}: longest = {longest}; an observation has at least one character")
    if not timeout > 0:
        raise TaskError(f"{name}: timeout = {timeout}; a call takes more than no seconds")


class Answer(NamedTuple):
    """What a game says to a command. `score` in [0, 1]; 1.0 = won."""

    text: str
    score: float
    over: bool
    understood: bool = True


class Game(Protocol):
    """One game in a Java machine."""

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
        """Give the game back."""
        ...


_BACK = {"north": "south", "south": "north", "east": "west", "west": "east"}
_LONGEST_WALK = 200  # commands


def walked(game: Game) -> tuple[str, ...]:
    """Commands that look at every room that can be walked to and end in the first; none where nobody walks."""
    sent: list[str] = []
    if any(command.startswith("move ") for command in game.possible()):
        _walk(game, _room(game, sent), sent, set())
    return tuple(sent)


def _walk(game: Game, room: str, sent: list[str], seen: set[str]) -> None:
    seen.add(room)
    for door in [command for command in game.possible() if command.startswith("open door")]:
        _said(game, door, sent)
    for move in [command for command in game.possible() if command.startswith("move ")]:
        _said(game, move, sent)
        there = _room(game, sent)
        if there == room or len(sent) > _LONGEST_WALK:
            continue
        if there not in seen:
            _walk(game, there, sent, seen)
        _said(game, f"move {_BACK.get(move.split()[-1], '')}", sent)


def _room(game: Game, sent: list[str]) -> str:
    """The sentence that says where one is."""
    return _said(game, "look around", sent).splitlines()[0]


def _said(game: Game, command: str, sent: list[str]) -> str:
    sent.append(command)
    return game.send(command).text


class TextEpisode:
    """One game. Ends when it is won or lost."""

    def __init__(self, name: str, game: Game, longest: int) -> None:
        self._name, self._game, self._longest = name, game, longest
        self._task, self._first = game.start()
        self._score = 0.0
        self._over = False

    def prompt(self) -> tuple[Message, ...]:
        """The task and what is seen first."""
        text = f"{cut(self._task, self._longest)}\n{cut(self._first, self._longest)}"
        return (Message(role="system", content=SYSTEM), Message(role="user", content=text))

    def step(self, action: ToolCall | None) -> str | None:
        """What the game says, or None when it is won or lost."""
        if self._over:
            raise InfrastructureError(f"{self._name}: the episode is over; episodes are single-use")
        if action is None or action.name not in {ACT, ACTIONS}:
            return "Unknown action."
        text = " ".join(action.argument.split())
        if action.name == ACTIONS:
            return cut(listing(self._game.possible(), text), self._longest)
        answer = self._game.send(text)
        self._score, self._over = answer.score, answer.over
        if self._over:
            return None
        if answer.understood:
            return cut(answer.text, self._longest)
        near = nearest(self._game.possible(), text)
        return cut(f"{answer.text}\nPossible: {', '.join(near)}" if near else answer.text, self._longest)

    def score(self) -> float:
        """1.0 if the game is won, else the share of the way that the game counts."""
        return self._score

    def close(self) -> None:
        """Give the game back; a second time does nothing."""
        self._over = True
        self._game.close()


def listing(possible: Sequence[str], word: str) -> str:
    """The possible commands that contain `word`, at most `LISTED`."""
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
