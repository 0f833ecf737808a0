"""What runs took altogether: tokens, time by kind of stage, memory.

Left out: single iterations (tables.py). What must not change: what a run was given by another run of its study (the
starter's evaluation, the first rollouts) is in the time of the one that played it, and in the tokens of both.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from internalize.records import Record

from .run_report import RunReport
from .spent import KINDS
from .text import count, duration, memory

CELL_COST_HEAD = ("cell", "sampled to learn", "sampled to measure", "trained on", *KINDS, "memory")
Row = tuple[str, ...]


class Costs(Record):
    """Of one run, or the mean of several; memory is the greatest of any, in bytes."""

    sampled: float = 0  # tokens of episodes that were learnt from
    measured: float = 0  # tokens of evaluation episodes
    trained: float = 0
    seconds: dict[str, float] = Field(default_factory=dict, description="By kind; empty if no time was noted.")
    memory: int = 0


def costs(report: RunReport) -> Costs:
    """Of one run."""
    spent = [i.spent for i in report.iterations if i.spent]
    return Costs(
        sampled=sum(s.action_tokens for i in report.iterations for s in i.sampled),
        measured=sum(i.measured_tokens for i in report.iterations),
        trained=sum(t.action_tokens for i in report.iterations for t in (i.training, i.milder) if t),
        seconds={kind: sum(s.seconds.get(kind, 0.0) for s in spent) for kind in KINDS} if spent else {},
        memory=max((s.memory for s in spent), default=0),
    )


def mean_costs(runs: Sequence[RunReport]) -> Costs:
    """Of the seeds of a cell."""
    found = [costs(report) for report in runs]
    timed = [one for one in found if one.seconds]
    return Costs(
        sampled=sum(one.sampled for one in found) / len(found),
        measured=sum(one.measured for one in found) / len(found),
        trained=sum(one.trained for one in found) / len(found),
        seconds={kind: sum(one.seconds[kind] for one in timed) / len(timed) for kind in KINDS} if timed else {},
        memory=max(one.memory for one in found),
    )


def cell_cost_row(cell: str, found: Costs) -> Row:
    """One row under CELL_COST_HEAD."""
    tokens = (count(found.sampled), count(found.measured), count(found.trained))
    return (cell, *tokens, *(duration(found.seconds.get(kind)) for kind in KINDS), memory(found.memory))


def totals(report: RunReport) -> str:
    """What a run took altogether, in a sentence or two."""
    found = costs(report)
    said = f"{count(found.sampled)} tokens sampled for learning, {count(found.measured)} for evaluation."
    if not found.seconds:
        return said
    parts = ", ".join(f"{kind} {duration(value)}" for kind, value in found.seconds.items())
    return f"{said} {duration(sum(found.seconds.values()))} of work: {parts}. Memory is the peak of the process so far."
