"""What the stages of a run took, from the marks that its process left: wall-clock time by kind, and peak memory.

Left out: tokens (played.py). What must not change: time in which no process worked on the run is in no stage, and a
run of a version that noted no time has none, not 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from pydantic import Field

from internalize.records import Record
from internalize.runs.store import StageMark

KINDS = ("rollouts", "extraction", "training", "evaluation")
_FIRST_WORD = re.compile(r"\w+")
_KINDS = {
    "rollouts": "rollouts", "teacher": "rollouts", "extract": "extraction",
    "distill": "training", "round": "training", "second": "training",
}  # fmt: skip


class Spent(Record):
    """Of one iteration; memory is the greatest that the process had needed by its end, in bytes."""

    seconds: dict[str, float] = Field(default_factory=dict, description="By kind (KINDS).")
    memory: int = 0
    device_memory: int = 0


def spent(marks: Iterable[StageMark]) -> dict[int, Spent]:
    """What each iteration took; those of which no time was noted are left out."""
    found: dict[int, Spent] = {}
    for mark in marks:
        if mark.seconds or mark.memory:
            before, kind = found.get(mark.iteration, Spent()), _kind(mark.stage)
            found[mark.iteration] = Spent(
                seconds={**before.seconds, kind: before.seconds.get(kind, 0.0) + mark.seconds},
                memory=max(before.memory, mark.memory),
                device_memory=max(before.device_memory, mark.device_memory),
            )
    return found


def _kind(stage: str) -> str:
    first = _FIRST_WORD.match(stage)
    return _KINDS.get(first.group() if first else "", "evaluation")
