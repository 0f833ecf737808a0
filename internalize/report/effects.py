"""What each choice of a grid does: a value of an axis against the first value, after a given number of iterations.

Once averaged over the other axes (each seed's tasks are averaged over those cells first), and once with the other axes
as in the reference cell. Only seeds that have every cell of a comparison count. p is an exact sign test over tasks,
their seeds averaged; Holm's method adjusts it for the comparisons of the same kind after the same iteration.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from internalize.evaluation.stats import Scores, holm, paired_difference_runs, sign_test, won_and_lost
from internalize.stages.study import Manifest

from .paired import Paired, over_runs
from .run_report import RunReport

Others = Literal["average", "reference"]  # what the other axes are


class Effect(Paired):
    """Success with `value` minus success with `against`, without experience in the prompt, after `iteration`."""

    axis: str
    value: str
    against: str
    others: Others
    iteration: int
    seeds: int


class _Pairs(NamedTuple):
    """Cells with a value of an axis, each beside the cell that differs by the first value of that axis."""

    axis: str
    value: str
    against: str
    cells: tuple[tuple[str, str], ...]  # with `value`, with `against`


def effects(
    manifest: Manifest, runs: Mapping[str, Sequence[RunReport]], last: int, resamples: int = 2000
) -> tuple[Effect, ...]:
    """The effects of every axis after each iteration that the study names; () for a study without axes."""
    cells = {member.cell: member.values for member in manifest.members if member.values}
    by_seed = {cell: {report.info.seed: report for report in reports} for cell, reports in runs.items()}
    found: list[Effect] = []
    for iteration in manifest.compare_at or (last,):
        for others in ("average", "reference"):
            compared = _pairs(cells, manifest.reference if others == "reference" else "")
            measured = [_effect(pairs, others, by_seed, iteration, resamples) for pairs in compared]
            known = [effect for effect in measured if effect]
            adjusted = holm([effect.p for effect in known])
            found += [effect.model_copy(update={"p": p}) for effect, p in zip(known, adjusted, strict=True)]
    return tuple(found)


def _pairs(cells: Mapping[str, Mapping[str, str]], like: str) -> Iterator[_Pairs]:
    """Every value of every axis against the first one; with the other axes as in the cell `like`, if it is given."""
    axes = {
        axis: [*dict.fromkeys(values[axis] for values in cells.values())] for axis in next(iter(cells.values()), {})
    }
    names = {frozenset(values.items()): cell for cell, values in cells.items()}
    for axis, (against, *values) in axes.items():
        for value in values:
            found = [
                (cell, names[frozenset({**own, axis: against}.items())])
                for cell, own in cells.items()
                if own[axis] == value and (not like or {**own, axis: ""} == {**cells.get(like, {}), axis: ""})
            ]
            yield _Pairs(axis, value, against, tuple(found))


def _effect(
    pairs: _Pairs, others: Others, by_seed: Mapping[str, Mapping[int, RunReport]], iteration: int, resamples: int
) -> Effect | None:
    """One effect; None if no seed has all its cells that far."""
    sides: list[list[Scores]] = []
    reached = [
        {seed for seed, report in by_seed.get(cell, {}).items() if report.finished >= iteration}
        for pair in pairs.cells
        for cell in pair
    ]
    seeds = sorted(set.intersection(*reached)) if reached else []
    for side in zip(*pairs.cells, strict=True):
        reports = [[by_seed[cell][seed] for cell in side] for seed in seeds]
        sides.append([over_runs([report.scores(report.kept_at(iteration)) for report in row]) for row in reports])
    change = paired_difference_runs(sides[1], sides[0], resamples) if seeds else None
    if change is None:
        return None
    return Effect(
        axis=pairs.axis,
        value=pairs.value,
        against=pairs.against,
        others=others,
        iteration=iteration,
        seeds=len(seeds),
        change=change,
        p=sign_test(*won_and_lost(over_runs(sides[1]), over_runs(sides[0]))),
    )
