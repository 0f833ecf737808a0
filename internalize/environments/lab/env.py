"""Environment `lab`: find a value behind a chain of signs; the right way at each sign has to be learned.

docs/laboratory.md explains what it models and what it does not.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated

from pydantic import Field

from internalize.environments.base import UNKNOWN, AnswerEpisode, checked
from internalize.errors import TaskError
from internalize.records import Task, ToolCall, ToolSpec

from . import cues, world

SYSTEM = "You look for a value."
SIZES = {"train": 2000, "dev": 300, "test": 300, "ood": 300}
TOOLS = (
    ToolSpec(name="find", argument="name", description="Look a name of the question up."),
    ToolSpec(name="open", argument="name", description="Open the page of a name."),
    ToolSpec(name="ask", argument="name", description="Ask a name for its page."),
    ToolSpec(name="push", argument="name", description="Push the door of a name."),
    ToolSpec(name="pull", argument="name", description="Pull the door of a name."),
    ToolSpec(name="wait", argument="here", description="Wait where you are."),
    ToolSpec(name="answer", argument="name", description="Give the value; ends the episode."),
)


class LabEpisode(AnswerEpisode):
    """One task. Ends with `answer`."""

    def __init__(self, task: Task) -> None:
        super().__init__("lab", SYSTEM, task)
        pages = task.state.get("pages")
        self._pages = pages if isinstance(pages, dict) else {}
        self._waits = next((n for n, call in enumerate(world.route_of(task)) if call.name == "wait"), None)
        self._before = world.route_of(task)[self._waits - 1] if self._waits else None
        self._last: ToolCall | None = None

    def observe(self, call: ToolCall | None) -> str:
        """The page of the call. Waiting shows the next page only if the sign asks for it."""
        if call is None:
            return UNKNOWN
        waits_here = call.name != "wait" or (self._before is not None and self._last == self._before)
        page = self._pages.get(f"{call.name} {call.argument}") if waits_here else None
        if page is None:
            return "Nothing."
        self._last = call
        return str(page)

    def score(self) -> float:
        """1.0 for the right value, else 0.0."""
        return float(self._answer is not None and self._answer == self._task.answer)


class Lab:
    """The environment. `domain` numbers its conventions: the right way at the same sign differs between domains.

    `least`: tasks with fewer signs are left out, so that the policy succeeds by itself less often. `stream`: the tasks
    of `train` come family by family, which a run sees with `rollout.order = "given"`.
    """

    name = "lab"
    tools = TOOLS
    evidence_actions = frozenset({"find", "open", "ask", "push", "pull"})
    final_actions = frozenset({"answer"})
    cues = cues.CUES

    @checked
    def __init__(
        self,
        domain: Annotated[int, Field(ge=0, le=1_000_000)] = 0,
        least: Annotated[int, Field(ge=1, le=4)] = 1,
        *,
        stream: bool = False,
    ) -> None:
        def drawn(split: str) -> tuple[Task, ...]:
            found = [task for task in world.tasks(domain, split, SIZES[split]) if world.signs(task.family) >= least]
            if stream and split == "train":
                found.sort(key=lambda task: list(world.FAMILIES).index(task.family))
            return tuple(found)

        self._domain = domain
        self._cached = cache(drawn)

    def splits(self) -> tuple[str, ...]:
        """Names of the splits; `ood` has names and chains that the others lack."""
        return tuple(SIZES)

    def tasks(self, split: str) -> tuple[Task, ...]:
        """Tasks of `split` in a fixed order. Raises TaskError for an unknown split."""
        if split not in SIZES:
            raise TaskError(f"lab: no split {split!r} (there are {', '.join(SIZES)})")
        return self._cached(split)

    def episode(self, task: Task) -> LabEpisode:
        """A fresh episode."""
        return LabEpisode(task)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        """The right calls."""
        return world.route_of(task)
