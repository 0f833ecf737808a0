"""Boxes: which colour is in a box? Every second box was moved; its label says where to."""

from internalize.errors import InfrastructureError, TaskError
from internalize.records import Message, Task, ToolCall, ToolSpec

COLOURS = ("red", "green", "blue", "amber", "white", "black")
MOVED = "Moved to: "


class BoxEpisode:
    def __init__(self, task: Task, labels: dict[str, str]) -> None:
        self.task, self.labels = task, labels
        self.answer: str | None = None

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="system", content="You find boxes."), Message(role="user", content=self.task.question))

    def step(self, call: ToolCall | None) -> str | None:
        if self.answer is not None:
            raise InfrastructureError("boxes: the episode is over")
        if call is not None and call.name == "answer":
            self.answer = call.argument
            return None
        return self.labels.get(call.argument, "No such box.") if call else "Unknown action."

    def score(self) -> float | None:
        return float(self.answer == self.task.answer)


class Boxes:
    name = "boxes"
    tools = (
        ToolSpec(name="look", argument="box", description="Read the label of a box."),
        ToolSpec(name="answer", argument="colour", description="Give the answer; ends the episode."),
    )
    evidence_actions, final_actions = frozenset({"look"}), frozenset({"answer"})

    def __init__(self, size: int = 200) -> None:
        self.labels: dict[str, str] = {}
        self.made = {split: tuple(self._task(split, n) for n in range(size)) for split in ("train", "dev", "test")}

    def _task(self, split: str, number: int) -> Task:
        box, home, colour = f"{split}/b{number}", f"{split}/m{number}", COLOURS[number // 2 % len(COLOURS)]
        moved = number % 2 == 1
        self.labels |= {box: MOVED + home, home: f"Colour: {colour}"} if moved else {box: f"Colour: {colour}"}
        return Task.new("boxes", split, f"Which colour is in box {box}?", colour, "moved" if moved else "plain")

    def tasks(self, split: str) -> tuple[Task, ...]:
        if split not in self.made:
            raise TaskError(f"boxes: no split {split!r} (there are {', '.join(self.made)})")
        return self.made[split]

    def episode(self, task: Task) -> BoxEpisode:
        return BoxEpisode(task, self.labels)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        box = task.question.removesuffix("?").split()[-1]
        looks = [box, self.labels[box].removeprefix(MOVED)] if self.labels[box].startswith(MOVED) else [box]
        return (*(ToolCall.of("look", box=b) for b in looks), ToolCall.of("answer", colour=task.answer or ""))
