"""What the stages of a run took, from the marks that its process left: wall-clock time by kind, and peak memory.

Left out: tokens (played.py). What must not change: time in which no process worked on the run is in no stage, and a
run of a version that noted no time has none, not 0.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from internalize.records import Record, StageKind, StageMark

KINDS = ("rollouts", "extraction", "training", "evaluation")
_KINDS: dict[StageKind, str] = {
    "rollout": "rollouts", "collect": "rollouts", "extract": "extraction",
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
            k, kind = mark.stage.iteration, _KINDS.get(mark.stage.kind, "evaluation")
            before = found.get(k, Spent())
            found[k] = Spent(
                seconds={**before.seconds, kind: before.seconds.get(kind, 0.0) + mark.seconds},
                memory=max(before.memory, mark.memory),
                device_memory=max(before.device_memory, mark.device_memory),
            )
    return found
