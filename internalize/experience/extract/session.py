"""What all questions of one extraction share: prompts, how much fits into a request, checked answers, many at once.

Left out: which questions there are (learn.py, agree.py). What must not change: a refusal is a value with a place,
an outage is raised only after everything asked beside it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from internalize.config.schema import ExtractConfig
from internalize.errors import ContextError, Incomplete, InfrastructureError
from internalize.experience.pool import ExperiencePool
from internalize.inference.structured import ask, fenced
from internalize.records import ChatRequest, Experience, Message, PoolEdit, Record

from .injection_filter import Screen
from .prompts import prompt
from .proposals import Bounds, LeftOut, Proposal, read, schema_of, to_edit
from .request_log import Ledger, Stage
from .transcript import CHARACTERS, plain

Value = TypeVar("Value")
ModelT = TypeVar("ModelT", bound=BaseModel)
TRIES = 3  # answers a question may get before it is refused
MOST_ANSWER = 1024  # tokens
UNBOUND = Bounds()  # answers without edits


class Refusal(Record):
    """A question whose answers stayed unusable."""

    stage: Stage
    subject: str
    reason: str


class Refused(Exception):  # noqa: N818 - an answer of the model, not an error of the program
    """Carries a Refusal to whoever can do without the answer."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


@dataclass(frozen=True)
class Work:
    """One extraction: what it edits, whom it asks, what it keeps out."""

    pool: ExperiencePool
    config: ExtractConfig
    book: Ledger
    screen: Screen
    iteration: int

    def prompt(self, name: str, **values: object) -> str:
        """The prompt `name` with what an item is and the word on fenced data."""
        item = prompt(self.config.granularity, words=self.config.words)
        return prompt(name, **{"item": item, "fencing": prompt("fencing"), **values})

    def room(self, instructions: str) -> int:
        """Characters that the data of a request may have; a second answer is counted, because a re-ask quotes one."""
        own = len(instructions) // (CHARACTERS + 1)  # they are plain English
        return max(0, (self.config.context - 2 * self._answer - own - 100) * CHARACTERS)

    async def ask(
        self,
        stage: Stage,
        subject: str,
        text: str,
        model: type[ModelT],
        check: Callable[[ModelT], Value],
        bounds: Bounds = UNBOUND,
    ) -> Value:
        """The checked answer; `check` raises ValueError. `bounds` are for servers that obey a schema.

        Raises Refused when answers stay unusable, InfrastructureError or Incomplete when there was none.
        """
        try:
            request = ChatRequest(
                messages=(Message(role="user", content=text),),
                response_schema=schema_of(model, bounds),
                max_tokens=self._answer,
            )
            found = await ask(
                self.book.about(stage, subject), request, lambda answer: check(read(model, answer)), tries=TRIES
            )
        except ContextError as error:  # asking again will not help
            raise self._refused(stage, subject, str(error)) from error
        if found.value is None:
            raise self._refused(stage, subject, found.problem)
        return found.value

    def _refused(self, stage: Stage, subject: str, reason: str) -> Refused:
        self.book.refuse(stage, subject, reason)
        return Refused(Refusal(stage=stage, subject=subject, reason=reason))

    def screened(self, proposals: Iterable[Proposal]) -> tuple[list[Proposal], list[LeftOut]]:
        """Proposals that may go in, and the others with the reason."""
        kept: list[Proposal] = []
        left: list[LeftOut] = []
        for proposal in proposals:
            reason = self.screen.item(proposal.text, self.config.granularity) if proposal.text else ""
            if not reason and proposal.targets:
                reason = self.screen.change(proposal.evidence)
            if reason:
                left.append(LeftOut.of(proposal, reason))
            else:
                kept.append(proposal)
        return kept, left

    def edits(self, proposals: Iterable[Proposal], pool: ExperiencePool) -> list[PoolEdit]:
        """Proposals as edits of `pool`."""
        held = {item.id: item for item in pool.items}
        return [to_edit(p, held, self.config, self.book.chat.name, self.iteration) for p in proposals]

    @property
    def _answer(self) -> int:
        return min(MOST_ANSWER, self.config.context // 6)


async def together(work: Iterable[Awaitable[Value]]) -> list[Value | Refused]:
    """All results in order, refusals among them. Raises Incomplete when all have ended and some found no answer."""
    found = await asyncio.gather(*work, return_exceptions=True)
    results: list[Value | Refused] = []
    owed: list[InfrastructureError | Incomplete] = []
    for one in found:
        if isinstance(one, InfrastructureError | Incomplete):
            owed.append(one)
        elif isinstance(one, BaseException) and not isinstance(one, Refused):
            raise one
        else:
            results.append(one)
    if owed:
        raise Incomplete(
            f"{len(owed)} of {len(found)} questions are still to be answered ({_root(owed[0])})"
        ) from owed[0]
    return results


async def all_of(work: Iterable[Awaitable[Value]]) -> list[Value]:
    """All results in order. Raises the first refusal among them, once all have ended."""
    results = await together(work)
    for one in results:
        if isinstance(one, Refused):
            raise one
    return [one for one in results if not isinstance(one, Refused)]


def _root(error: BaseException) -> BaseException:
    """The failure itself, when it comes out of questions within a question."""
    while isinstance(error.__cause__, InfrastructureError | Incomplete):
        error = error.__cause__
    return error


def listed(items: Iterable[Experience]) -> str:
    """Held items, one a line, for a prompt."""
    return "\n".join(_line(item) for item in items) or "(none)"


def shown(items: Iterable[Experience]) -> str:
    """`listed`, fenced."""
    return data(listed(items))


def data(text: str) -> str:
    """`text` fenced as data."""
    return fenced("data", plain(text))


def fitting(ranked: Sequence[Experience], order: Sequence[Experience], room: int) -> list[Experience]:
    """The first of `ranked` whose lines fit into `room` characters, as they stand in `order`."""
    kept: set[str] = set()
    for item in ranked:
        room -= len(_line(item)) + 1
        if room < 0:
            break
        kept.add(item.id)
    return [item for item in order if item.id in kept]


def _line(item: Experience) -> str:
    return f"[{item.id}] {' '.join(item.text.split())}"
