"""A small environment for tests: which number is in a box? Look into it, then answer."""

from __future__ import annotations

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Message, Task, ToolCall, ToolSpec
from tests.steps import act


class ToyEpisode:
    def __init__(self, task: Task, *, breaks: bool) -> None:
        self.task, self.breaks = task, breaks
        self.answer: str | None = None
        self.over = False

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="system", content="Boxes."), Message(role="user", content=self.task.question))

    def step(self, action: ToolCall | None) -> str | None:
        if self.breaks:
            raise InfrastructureError("the box is jammed")
        if action is None:
            return "Unknown action."
        if self.over:
            raise InfrastructureError("the box is empty; episodes are single-use")
        if action.name == "answer":
            self.answer, self.over = action.argument, True
            return None
        return f"Inside: {self.task.answer}" if action.argument in self.task.question else "Nothing."

    def score(self) -> float | None:
        return float(self.answer == self.task.answer)


class Toy:
    name = "toy"
    tools = (
        ToolSpec(name="look", argument="box", description="Look into a box."),
        ToolSpec(name="answer", argument="number", description="Answer."),
    )
    evidence_actions = frozenset({"look"})
    final_actions = frozenset({"answer"})

    def __init__(self, size: int = 12, broken: frozenset[str] = frozenset(), jams: int = 0) -> None:
        self.size, self.broken, self.jams = size, broken, jams
        self.opened = 0

    def tasks(self, split: str) -> tuple[Task, ...]:
        starts = {"train": 100, "dev": 500, "test": 800}
        if split not in starts:
            raise TaskError(f"toy: no split {split!r}")
        first = starts[split]
        return tuple(
            Task.new("toy", split, f"Which number is in box {n}?", str(n % 7), "box")
            for n in range(first, first + self.size)
        )

    def episode(self, task: Task) -> ToyEpisode:
        self.opened += 1
        jammed = task.id in self.broken and self.jams > 0
        self.jams -= jammed
        return ToyEpisode(task, breaks=jammed)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        box = task.question.split()[-1].rstrip("?")
        return (act("look", box), act("answer", task.answer or ""))
