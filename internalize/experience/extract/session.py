"""Requests of one extraction to a language model: their prompts, how much fits into them, and checked answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar

from pydantic import BaseModel

from internalize.config.schema import ExtractConfig
from internalize.errors import ContextError, Incomplete, InfrastructureError
from internalize.experience.cues import GENERIC
from internalize.experience.pool import ExperiencePool
from internalize.inference.cached import CachedChat
from internalize.inference.structured import ask, fenced
from internalize.interfaces import CueExtractor
from internalize.records import ChatRequest, Experience, Message, Record, Trajectory

from .injection_filter import InjectionFilter
from .prompts import prompt
from .proposals import Bounds, read, schema_of
from .provenance import distinct
from .transcript import CHARACTERS

Value = TypeVar("Value")
ModelT = TypeVar("ModelT", bound=BaseModel)
Question = Literal["summary", "compare", "reconcile", "consolidate"]
TRIES = 3  # answers a question may get before it is refused
MOST_ANSWER = 1024  # tokens of an answer
RETRY_TEMPERATURE = 0.7  # temperature 0 would give the same unusable answers again
UNBOUND = Bounds()  # for answers without edits


class ExtractionInput(NamedTuple):
    """The input of an extraction: episodes of this iteration, recent episodes, and the pool before."""

    trajectories: Sequence[Trajectory]
    earlier: Sequence[Trajectory]
    pool: ExperiencePool
    iteration: int
    barred: frozenset[str] = frozenset()  # ids of items that must not be added again
    checkpoint: str = ""  # id of the policy's weights, if the policy writes
    cues: tuple[CueExtractor, ...] = GENERIC  # what rules about the environment can name


class Refusal(Record):
    """A question without a usable answer."""

    stage: Question
    subject: str  # the task, trajectory or batch it was about
    reason: str


class Refused(Exception):  # noqa: N818 - an answer of the model, not an error of the program
    """A question got no usable answer; carries the Refusal to a caller that can do without."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


@dataclass(frozen=True)
class Session:
    """One extraction: the pool it edits, the model it asks, and the filter for proposals.

    `retries`: an earlier call stopped because too many questions were refused. They are asked once more.
    """

    pool: ExperiencePool
    config: ExtractConfig
    chat: CachedChat  # replays rejected replies, so that a resumed extraction takes the same path
    filter: InjectionFilter
    iteration: int
    retries: bool
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by trajectory id

    def origins_of(self, evidence: Iterable[str]) -> tuple[str, ...]:
        """The origins of the results in these trajectories."""
        return distinct(origin for one in evidence for origin in self.origins.get(one, ()))

    def prompt(self, name: str, **values: object) -> str:
        """The prompt `name`, with the texts that explain an item and fenced data."""
        item = prompt(self.config.granularity, words=self.config.words)
        return prompt(name, **{"item": item, "fencing": prompt("fencing"), **values})

    def room(self, instructions: str) -> int:
        """Characters left for a request's data. Two answers are subtracted: a correction quotes the first one."""
        own = len(instructions) // (CHARACTERS + 1)  # instructions are plain English
        return max(0, (self.config.context - 2 * self._answer_tokens - own - 100) * CHARACTERS)

    @property
    def _answer_tokens(self) -> int:
        return min(MOST_ANSWER, self.config.context // 6)

    async def ask(
        self,
        question: Question,
        subject: str,
        text: str,
        model: type[ModelT],
        check: Callable[[ModelT], Value],
        bounds: Bounds = UNBOUND,
    ) -> Value:
        """The result of `check` on the answer; `check` raises ValueError for a bad one. `bounds` limit the schema.

        Raises Refused if no answer can be used, InfrastructureError or Incomplete if there was none.
        """
        request = ChatRequest(
            messages=(Message(role="user", content=text),),
            response_schema=schema_of(model, bounds),
            max_tokens=self._answer_tokens,
        )
        warmer = request.model_copy(update={"temperature": RETRY_TEMPERATURE, "seed": TRIES})
        problem = ""
        for each in (request, warmer) if self.retries else (request,):
            try:
                answer = await ask(self.chat, each, lambda found: check(read(model, found)), tries=TRIES)
            except ContextError as error:  # asking again will not help
                problem = str(error)
                break
            if answer.value is not None:
                return answer.value
            problem = answer.problem
        raise Refused(Refusal(stage=question, subject=subject, reason=problem))


async def gather(work: Iterable[Awaitable[Value]]) -> list[Value | Refused]:
    """All results in order, refusals among them. Raises Incomplete, after all have ended, if some had no answer."""
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
        cause: BaseException = owed[0]
        while isinstance(cause.__cause__, InfrastructureError | Incomplete):  # a question may contain another one
            cause = cause.__cause__
        raise Incomplete(f"{len(owed)} of {len(found)} questions are still to be answered ({cause})") from owed[0]
    return results


async def gather_all(work: Iterable[Awaitable[Value]]) -> list[Value]:
    """All results in order. Raises the first refusal among them, after all have ended."""
    results = []
    for one in await gather(work):
        if isinstance(one, Refused):
            raise one
        results.append(one)
    return results


def fenced_data(text: str) -> str:
    """`text` between tags that mark it as data."""
    return fenced("data", text)


def item_lines(items: Iterable[Experience]) -> str:
    """Items, one a line, for a prompt."""
    return "\n".join(map(_line, items)) or "(none)"


def fitting(ranked: Iterable[Experience], order: Sequence[Experience], room: int) -> list[Experience]:
    """The first of `ranked` whose lines fit into `room` characters, in the sequence of `order`."""
    ids: set[str] = set()
    for item in ranked:
        room -= len(_line(item)) + 1
        if room < 0:
            break
        ids.add(item.id)
    return [item for item in order if item.id in ids]


def _line(item: Experience) -> str:
    return f"[{item.id}] {' '.join(item.text.split())}"
