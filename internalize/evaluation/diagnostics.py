"""The stored result of an evaluation: computed and written once, then only read by the report and the warning signs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from internalize.records import EvalResult, Record

from .behaviour import Behaviour
from .metrics import Group, SuiteMetrics, group_of, grouped, line_of


class Diagnostics(Record):
    """One line of an iteration's diagnostics.jsonl: one policy on one suite, in one mode, with one pool.

    `behaviour` is None in runs of version 1; it then has to be computed from the stored episodes.
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
    """The diagnostics of all results of a run, in order; only missing and stale ones are computed."""
    by_group = {group_of(diagnostics.metrics): diagnostics for diagnostics in known}
    groups = grouped(results)
    for group, group_results in groups.items():
        old = by_group.get(group)
        if old is None or is_stale(group):
            line = line_of(group_results, results, resamples, seed)
            by_group[group] = Diagnostics(metrics=line, behaviour=old.behaviour if old else None)
    return tuple(by_group[group] for group in groups)
