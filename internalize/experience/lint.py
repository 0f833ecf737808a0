"""Flags odd items of a pool: without a strategy, with details of single tasks, near duplicates, long, with orders.

Near duplicates are found by the share of words that two items have in common; word order, which libraries for fuzzy
matching weigh, says little about the meaning of a rule. Only principles must have a strategy, be short and be without
details; instances are meant to hold details.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import combinations
from typing import Literal

from internalize.evaluation.pool_health import leaked, states_strategy
from internalize.experience.extract.injection_filter import InjectionFilter
from internalize.interfaces import CueExtractor
from internalize.records import Experience, Record, Trajectory

from .cues import GENERIC
from .rules import parse
from .words import word_count, words_of

TWINS = 0.8  # share of common words from which two items count as near duplicates
COMMON = 0.08  # a name in this share of the questions belongs to the environment, not to a task
# Dotted names, several capitalized words or one with a capital inside, quotations and numbers. One capitalized word may
# just begin a title or a sentence.
_ENTITY = re.compile(
    r'[\w#-]+(?:[./_][\w#-]+)+|(?<=[\w,;] )[A-Z]\w+(?: [A-Z]\w+)+|\b[A-Z]+[a-z]+[A-Z]\w*|(?<=")[^"]{3,}(?=")|\b\d{2,}\b'
)


class Flag(Record):
    """One odd thing about one item."""

    item_id: str
    sign: Literal["no_strategy", "leak", "near_duplicate", "too_long", "screened"]
    detail: str


def lint(
    items: Sequence[Experience],
    trajectories: Sequence[Trajectory] = (),
    words: int = 32,
    cues: tuple[CueExtractor, ...] = GENERIC,
) -> tuple[Flag, ...]:
    """Every flag of a pool, item by item; `words` is the longest a principle may be.

    `trajectories` tell which names belong to tasks, and which orders pages gave. `cues` are what the pool's rules can
    name.
    """
    entities, filtering = task_entities(trajectories), InjectionFilter.of(trajectories)
    twins = near_duplicates(items, cues=cues)
    return tuple(
        flag
        for item in items
        for flag in (*_of_principle(item, entities, words), *_twin(item, twins), *_screened(item, filtering))
    )


def near_duplicates(
    items: Sequence[Experience], least: float = TWINS, cues: tuple[CueExtractor, ...] = GENERIC
) -> dict[str, tuple[str, float]]:
    """Later id -> (earlier id, share of common words), where the share is at least `least`.

    Two rules of contrastive extraction are never near duplicates: they share their form but differ in what they quote.
    """
    bags = [(item, frozenset(words_of(item.text)), parse(item.text, cues)) for item in items]
    found: dict[str, tuple[str, float]] = {}
    for (first, a, rule), (second, b, other) in combinations(bags, 2):
        share = len(a & b) / max(1, len(a | b))
        if share >= least and not (rule and other):
            found.setdefault(second.id, (first.id, share))
    return found


class Names:
    """Names in questions or answers, collected episode by episode, because files of episodes are large."""

    def __init__(self) -> None:
        self._asked: dict[str, set[str]] = {}  # question -> answers that scored 1.0

    def add(self, trajectory: Trajectory) -> None:
        """Collect the names of one episode."""
        self._asked.setdefault(trajectory.question, set()).update(_answer(trajectory))

    def of_tasks(self) -> frozenset[str]:
        """The names that belong to single tasks: in few questions, or the answer that solved one of them."""
        counts = Counter(name for asked, known in self._asked.items() for name in {*_ENTITY.findall(asked), *known})
        most = max(1.0, COMMON * len(self._asked))
        return frozenset(name for name, count in counts.items() if count <= most)


def task_entities(trajectories: Iterable[Trajectory]) -> frozenset[str]:
    """The names in these episodes that belong to single tasks."""
    names = Names()
    for trajectory in trajectories:
        names.add(trajectory)
    return names.of_tasks()


def _answer(trajectory: Trajectory) -> Iterator[str]:
    """The argument of a successful last action, unless it is a plain word that any rule may contain."""
    answer = trajectory.answer or ""
    if trajectory.score == 1.0 and re.search(r"[^a-z]", answer) and len(answer) > 3:
        yield answer


def _of_principle(item: Experience, entities: Collection[str], words: int) -> Iterator[Flag]:
    if item.granularity != "principle":
        return
    if not states_strategy(item.text):
        yield Flag(item_id=item.id, sign="no_strategy", detail="states no strategy")
    if detail := leaked(item.text, entities):
        yield Flag(item_id=item.id, sign="leak", detail=f"{detail[0]} {detail[1]!r}")
    length = word_count(item.text)
    if length > words:
        yield Flag(item_id=item.id, sign="too_long", detail=f"{length} words, more than {words}")


def _twin(item: Experience, twins: dict[str, tuple[str, float]]) -> Iterator[Flag]:
    if item.id in twins:
        other, share = twins[item.id]
        yield Flag(item_id=item.id, sign="near_duplicate", detail=f"{share:.0%} of the words of {other}")


def _screened(item: Experience, filtering: InjectionFilter) -> Iterator[Flag]:
    # Checked as an instance, because an address in a principle is flagged as a leak already.
    if reason := filtering.problem(item.text, "instance"):
        yield Flag(item_id=item.id, sign="screened", detail=reason)
