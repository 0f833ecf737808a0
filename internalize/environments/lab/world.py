"""The world of `lab`: pages that show a sign and names, and domains that define the right way at every sign.

A sign offers two ways. Which of them is right is one bit of the domain, and nothing on the page reveals it; the other
way ends at a page that looks the same but has the wrong value. A task is a chain of signs, drawn from a seed.
"""

from __future__ import annotations

import itertools
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from pydantic import JsonValue

from internalize.experience.cues import GIVEN, LINE
from internalize.experience.rules import Reading, Rule
from internalize.records import Task, ToolCall

from .cues import LAST_NAME, SEASON

Kind = Literal["tool", "when", "where", "season", "read"]
DOOR, PRIZE, READY, PLAIN, HERE = "Door:", "Prize:", "Ready.", "Kept.", "here"
NAMES = tuple(a + b + c + d for a, c in itertools.product("bdklmnrst", repeat=2) for b, d in ("ao", "ie", "ua"))
OTHERS = 60  # the last names, which only the split `ood` uses
SEASONS = ("winter", "summer")
SEASONAL = "Noted."  # the sign of a page whose right way depends on the season that the question names


class Sign(NamedTuple):
    """What stands at the top of a page, the kind of choice it poses, and the two ways on.

    Ways are the tools for the name on the page; of `read` they are the labels of the value. Only `open` is for the name
    where the other tool is `wait` or `find`.
    """

    word: str
    kind: Kind
    ways: tuple[str, str]

    def rule(self, first: bool) -> Rule:  # noqa: FBT001 - the bit of a domain
        """What to do at this sign if the first of its two ways is right."""
        way = self.ways[not first]
        cue = Reading(LINE, self.word)
        if self.kind == "season":
            return Rule(Reading(LINE, SEASONAL), way, Reading(LINE, DOOR), Reading(SEASON, self.word))
        if self.kind == "read":
            return Rule(cue, "answer", Reading(LINE, way))
        value = {"wait": Reading(GIVEN, HERE), "find": Reading(LAST_NAME)}.get(way, Reading(LINE, DOOR))
        return Rule(cue, way, value)


# Signs share their ways, so that the right way at one sign says nothing about another.
SIGNS = (
    Sign("Sealed.", "tool", ("open", "ask")),
    Sign("Barred.", "tool", ("open", "ask")),
    Sign("Guarded.", "tool", ("open", "ask")),
    Sign("Rented.", "tool", ("open", "ask")),
    Sign("Hidden.", "tool", ("push", "pull")),
    Sign("Folded.", "tool", ("push", "pull")),
    Sign("Split.", "tool", ("push", "pull")),
    Sign("Worn.", "tool", ("push", "pull")),
    Sign("Busy.", "when", ("open", "wait")),
    Sign("Damp.", "when", ("open", "wait")),
    Sign("Moved.", "where", ("open", "find")),
    Sign("Lent.", "where", ("open", "find")),
    Sign("winter", "season", ("push", "pull")),
    Sign("summer", "season", ("push", "pull")),
    Sign("Listed.", "read", ("Old:", "New:")),
    Sign("Stamped.", "read", ("Old:", "New:")),
)
BY_WORD = {sign.word: sign for sign in SIGNS}
Domain = Mapping[str, bool]  # by a sign's word: whether the first way is right

FAMILIES: dict[str, tuple[Kind, ...]] = {
    "trail": ("tool",),
    "double": ("tool", "tool"),
    "queue": ("when", "tool"),
    "move": ("where", "tool"),
    "ledger": ("tool", "read"),
    "season": ("tool", "season"),
    "errand": ("when", "tool", "read"),
    "journey": ("where", "tool", "season"),
    "tour": ("tool", "when", "tool", "tool"),
    "round": ("when", "where", "season", "tool", "tool"),
}
LONG: dict[str, tuple[Kind, ...]] = {  # only in the split `ood`
    "detour": ("where", "when", "tool"),
    "descent": ("tool", "tool", "tool"),
    "voyage": ("when", "where", "tool", "season", "tool", "read"),
}


def signs(family: str) -> int:
    """How many signs a task of the family has."""
    return len({**FAMILIES, **LONG}[family])


def domain(number: int) -> Domain:
    """The conventions of a domain: for half of the signs of each kind the first way is right, chosen by the number."""
    rng, found = random.Random(f"domain {number}"), dict[str, bool]()
    for _, same in itertools.groupby(SIGNS, key=lambda sign: (sign.kind, sign.ways)):
        signs = list(same)
        bits = [place % 2 == 0 for place in range(len(signs))]
        rng.shuffle(bits)
        found |= {sign.word: bit for sign, bit in zip(signs, bits, strict=True)}
    return found


def random_domain(rng: random.Random) -> Domain:
    """Conventions with every bit drawn independently."""
    return {sign.word: rng.random() < 0.5 for sign in SIGNS}


class Builder:
    """Draws one task of a domain: its pages by the call that shows them, and the route."""

    def __init__(self, conventions: Domain, names: Sequence[str], rng: random.Random) -> None:
        self._domain, self._rng = conventions, rng
        self._names = iter(rng.sample(names, min(len(names), 30)))
        self.pages: dict[str, str] = {}
        self.route: list[tuple[str, str]] = []

    def task(self, split: str, family: str, kinds: Sequence[Kind]) -> Task:
        """The task as a record; its state has pages and route, so that an episode needs nothing else."""
        first, self._last, self._season = next(self._names), next(self._names), self._rng.choice(SEASONS)
        self._reads = kinds[-1] == "read"
        self.route.append(("find", first))
        used: set[str] = set()
        for kind in kinds[: len(kinds) - self._reads]:
            fitting = [s for s in SIGNS if s.kind == kind and s.word not in used]
            sign = BY_WORD[self._season] if kind == "season" else self._rng.choice(fitting)
            used.add(sign.word)
            self._fork(sign)
        lines, answer = self._last_page()
        self._show(*lines)
        self.route.append(("answer", answer))
        if f"find {self._last}" not in self.pages:
            self._decoy("find", self._last)
        question = f"Seek {first}, else {self._last}, in {self._season}"
        route: list[JsonValue] = [list(call) for call in self.route]
        return Task.new("lab", split, question, answer, family, pages=dict(self.pages), route=route)

    def _show(self, *lines: str) -> None:
        """The page that the last call of the route leads to."""
        self.pages[" ".join(self.route[-1])] = "\n".join(lines)

    def _fork(self, sign: Sign) -> None:
        """A page with a sign, and both ways."""
        name, right = next(self._names), self._domain[sign.word]
        self._show(SEASONAL if sign.kind == "season" else sign.word, f"{DOOR} {name}")
        way, other = sign.ways if right else sign.ways[::-1]
        if other not in {"wait", "find"}:  # waiting leads nowhere, and what the last name leads to is shown anyway
            self._decoy(other, name)
        if way == "wait":
            behind = next(self._names)
            self.route.append(("wait", HERE))
            self._show(READY, f"{DOOR} {behind}")
            self.route.append(("open", behind))
        else:
            self.route.append((way, self._last if way == "find" else name))

    def _shuffled(self, *lines: str) -> list[str]:
        return self._rng.sample(lines, len(lines))

    def _last_page(self) -> tuple[list[str], str]:
        """The lines of a last page, and its right value."""
        a, b = next(self._names), next(self._names)
        if not self._reads:
            return [PLAIN, f"{PRIZE} {a}"], a
        sign = self._rng.choice([s for s in SIGNS if s.kind == "read"])
        lines = self._shuffled(f"{sign.ways[0]} {a}", f"{sign.ways[1]} {b}")
        return [sign.word, *lines], a if self._domain[sign.word] else b

    def _decoy(self, verb: str, argument: str) -> None:
        self.pages[f"{verb} {argument}"] = "\n".join(self._last_page()[0])


def tasks(number: int, split: str, count: int) -> Iterator[Task]:
    """`count` tasks of a split, families in turn; no question is asked twice, in any split."""
    conventions = domain(number)
    names = NAMES[-OTHERS:] if split == "ood" else NAMES[:-OTHERS]
    families, asked = list((LONG if split == "ood" else FAMILIES).items()), set[str]()
    for draw in itertools.count():
        if len(asked) == count:
            return
        family, kinds = families[len(asked) % len(families)]
        task = Builder(conventions, names, random.Random(f"{number} {split} {draw}")).task(split, family, kinds)
        if task.question not in asked and split in {"ood", split_of(task.question)}:
            asked.add(task.question)
            yield task


def split_of(question: str) -> str:
    """The split of a question: `train` for six of eight."""
    return ("train", "dev", "test")[max(0, zlib.crc32(question.encode()) % 8 - 5)]


def route_of(task: Task) -> tuple[ToolCall, ...]:
    """The right calls of a task."""
    route = task.state.get("route")
    calls = [call for call in route if isinstance(call, list)] if isinstance(route, list) else []
    return tuple(ToolCall.from_text(str(verb), str(argument)) for verb, argument in calls)
