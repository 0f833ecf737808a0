"""A scripted chat model that writes experience, and trajectories for it to read."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

from internalize.errors import InfrastructureError
from internalize.records import ChatRequest, Message, Reply, Trajectory
from tests.steps import step

Stage = str
Answers = Mapping[Stage, Callable[[str], Any]]  # stage -> (what was asked -> JSON value or text)
_STAGES = {
    "summary": "Retell it for a colleague",
    "compare": "An agent tried one task several times",
    "reconcile": "Make them agree",
    "consolidate": "has grown too large",
}
_ID = re.compile(r"^\[([0-9a-f]{12})\]", re.MULTILINE)


def stage_of(text: str) -> Stage:
    return next(stage for stage, words in _STAGES.items() if words in text)


def held_ids(text: str) -> list[str]:
    """Ids of the items that a prompt shows."""
    return list(dict.fromkeys(_ID.findall(text)))


def task_number(text: str) -> int:
    found = re.search(r"in box (\d+)", text)
    assert found
    return int(found[1])


def proposal_count(text: str) -> int:
    return len(re.findall(r"^\d+\. (?:ADD|UPDATE|DELETE|MERGE)", text, re.MULTILINE))


def add(text: str) -> dict[str, Any]:
    return {"op": "ADD", "targets": [], "text": text, "reason": "attempt 1 did"}


def edits(*found: dict[str, Any]) -> dict[str, Any]:
    return {"comparison": "One looked, one did not.", "edits": list(found)}


def keep_all(text: str) -> dict[str, Any]:
    """A reconciler that changes nothing: every proposal becomes its own decision."""
    lines = re.findall(r"^(\d+)\. (\w+)((?: [0-9a-f]{12})*)(?:: (.*?))? \(from ", text, re.MULTILINE)
    return {
        "decisions": [
            {"op": op, "proposals": [int(n)], "targets": targets.split(), "text": said, "reason": "kept"}
            for n, op, targets, said in lines
        ]
    }


def shrink(text: str) -> dict[str, Any]:
    found = re.search(r"(\d+) of the items below have to go", text)
    assert found
    doomed = held_ids(text)[: int(found[1])]
    return {"edits": [{"op": "DELETE", "targets": doomed, "text": "", "reason": "least useful"}]}


ANSWERS: Answers = {
    "summary": lambda _: {"summary": "It looked into the box. Then it answered."},
    "compare": lambda text: edits(
        add(f"When box kind {'abcdefghijklmnopqrstuvwxyz'[task_number(text) % 26]} is asked, look inside first.")
    ),
    "reconcile": keep_all,
    "consolidate": shrink,
}


class Writer:
    """`interfaces.ChatModel` with scripted answers. `down`: calls (from 0) that raise InfrastructureError."""

    name = "scripted"

    def __init__(self, answers: Answers | None = None, *, down: Collection[int] = ()) -> None:
        self.answers = {**ANSWERS, **(answers or {})}
        self.down = down
        self.calls = 0
        self.asked: list[tuple[Stage, str]] = []
        self.temperatures: list[float] = []

    async def complete(self, request: ChatRequest) -> Reply:
        number = self.calls
        self.calls += 1
        await asyncio.sleep(0)
        if number in self.down:
            raise InfrastructureError("the server is down")
        assert request.response_schema
        text = request.messages[0].content
        self.asked.append((stage_of(text), request.messages[-1].content))
        self.temperatures.append(request.temperature)
        answer = self.answers[stage_of(text)](text)
        return Reply(text=answer if isinstance(answer, str) else json.dumps(answer), prompt_tokens=7)

    @property
    def stages(self) -> Counter[Stage]:
        return Counter(stage for stage, _ in self.asked)


def attempt(
    number: int, score: float | None, *, n: int = 0, seen: str = "Inside: 3", steps: int = 2, size: int = 0
) -> Trajectory:
    """Attempt `n` at box `number`; `size` makes every observation that long."""
    pages = [f"{seen} {'. '.join(f'line {i} of page {s}' for i in range(size // 16))}".strip() for s in range(steps)]
    taken = [step(text=f"look[{number}.{s}]", seen=page) for s, page in enumerate(pages)]
    return Trajectory(
        id=f"t{number}-{n}", task_id=f"task{number}", env="toy", split="train", iteration=1, seed=0, attempt=n,
        checkpoint="c", prompt=(Message(role="user", content=f"Which number is in box {number}?"),),
        steps=(*taken, step(text=f"answer[{n}]")), termination="answered", score=score,
    )  # fmt: skip


def tried(*numbers: int, **kind: Any) -> list[Trajectory]:
    """A success and a failure of each task."""
    return [attempt(number, score, n=n, **kind) for number in numbers for n, score in enumerate((1.0, 0.0))]
