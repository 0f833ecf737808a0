"""What an evaluation showed, written once as a record, so that the report and the warning signs only read it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from internalize.records import EvalResult, Record

from .behaviour import Behaviour
from .metrics import Group, SuiteMetrics, group_of, grouped, line_of


class Diagnostics(Record):
    """One line of an iteration's diagnostics.jsonl: its policy on one suite, in one mode, with one pool.

    `behaviour` None: measured by version 1, whose episodes have to be read for it.
    """

    metrics: SuiteMetrics
    behaviour: Behaviour | None = None


def measured(
    results: Sequence[EvalResult],
    known: Iterable[Diagnostics],
    resamples: int,
    seed: int,
    is_stale: Callable[[Group], bool] = lambda _: False,
) -> tuple[Diagnostics, ...]:
    """The diagnostics of all results of a run, in their order: those known, and computed those missing or stale."""
    held = {group_of(one.metrics): one for one in known}
    found = []
    for group, of_group in grouped(results).items():
        old = held.get(group)
        if old is None or is_stale(group):
            line = line_of(of_group, results, resamples, seed)
            old = Diagnostics(metrics=line, behaviour=old.behaviour if old else None)
        found.append(old)
    return tuple(found)
