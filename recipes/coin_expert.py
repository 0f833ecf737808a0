"""A scripted searcher for the game `coin` of TextWorldExpress, and the aimless one that the warm-up imitates.

The package's own solutions walk to and fro, and look around where everything was just said. The searcher takes the coin
where it sees it and else goes where it has not been. The aimless one often overlooks the coin, grabs where there is none
(so that experience can tell the two apart) and goes anywhere.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from internalize.records import ToolCall

TAKE, LOOK = "take coin", "look around"
P_TAKE, P_SEARCH = 0.3, 0.65  # of the aimless one: that it takes a coin in sight, that it goes on as the searcher would
P_GRAB = 0.2  # that it grabs where there is no coin
P_LOOK, P_STRAY = 0.4, 0.15  # of walks: that they begin with a look, that a step goes anywhere
_MOST = 7  # steps of a walk
_DOOR = re.compile(r"To the (\w+) you see the ([\w ]+)\.")
_ROOM = re.compile(r"You are in the ([\w ]+)\.")


class Searcher:
    """Remembers rooms; `next` says what to do after an observation."""

    def __init__(self) -> None:
        self._been: list[str] = []

    def next(self, seen: str) -> str:
        here = _ROOM.findall(seen)
        self._been += here[-1:]
        if _coin(seen):
            return TAKE
        doors = dict(_DOOR.findall(seen))
        if not doors:
            return LOOK
        ages = {way: self._age(room) for way, room in doors.items()}
        return f"move {max(ages, key=lambda way: ages[way]).lower()}"

    def _age(self, room: str) -> int:
        """How long ago the room was left; longest for one that was never entered."""
        return self._been[::-1].index(room) if room in self._been else len(self._been) + 1


def act(command: str) -> ToolCall:
    return ToolCall.of("act", command=command)


def _coin(seen: str) -> bool:
    return re.search(r"\ba coin\.", seen) is not None


def aimless(seen: str, good: ToolCall, rng: random.Random) -> ToolCall:
    """What the aimless one does where the searcher does `good`."""
    if not _coin(seen) and rng.random() < P_GRAB:
        return act(TAKE)
    if rng.random() < (P_TAKE if _coin(seen) else P_SEARCH):
        return good
    ways = [f"move {way.lower()}" for way, _ in _DOOR.findall(seen)]
    return act(rng.choice([*ways, *ways, LOOK, "move north"]))


def play(
    first: str, step: Callable[[ToolCall], str | None], rng: random.Random
) -> Iterator[tuple[ToolCall, ToolCall, str | None]]:
    """A walk: what the searcher would do, what was done (now and then something else), what came of it."""
    searcher, seen = Searcher(), first
    for number in range(_MOST):
        command = taken = searcher.next(seen)
        if number == 0 and rng.random() < P_LOOK:
            command = taken = LOOK
        elif command != TAKE and rng.random() < P_STRAY:
            taken = rng.choice(["move north", "move south", LOOK, TAKE])
        said = step(act(taken))
        yield act(command), act(taken), said
        if said is None:
            return
        seen = said
