"""Measures the value of showing an item: how often it was shown, and success with it against success without it.

    shown    scored episodes in which the item was shown at some step
    without  episodes without any experience, by the same weights, in which the item's situation arose:
             its cue applied at some decision (rules), or, where no cue can be tested, on the tasks it was shown on
    difference = mean over the shown tasks of: score minus the mean of `without` under the same weights

A task counts once for each set of weights, its attempts averaged. The interval draws tasks, together for both sides,
so tasks on both sides are paired. The difference is an association, not an effect: an item is shown because of an
observation, which depends on earlier actions and injections; items shown together share the credit and the blame; and
if the two sides have different tasks, these must come from the same distribution. Items of a global prefix are not
measured, because all of them are always shown. Unscored episodes are no evidence, and few tasks retire nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from internalize.evaluation.stats import Interval, Scores, difference_of_means, task_means
from internalize.interfaces import CueExtractor, Situation
from internalize.records import Experience, PoolEdit, Record, Trajectory

from .cues import GENERIC
from .pool import ExperiencePool, count_usage
from .rules import applies, decisions, parse

LEAST = 10  # fewest tasks a side: with fewer, bootstrap intervals are too narrow


class Utility(Record):
    """One item. `selected` counts decisions, rates are means over tasks; `difference` None = a side is empty.

    `success_without` counts each set of weights by its share of the shown tasks.
    """

    item_id: str
    selected: int = 0
    episodes: int = 0
    tasks: int = 0
    success: float | None = None
    tasks_without: int = 0
    success_without: float | None = None
    difference: Interval | None = None

    @property
    def sure(self) -> bool:
        """Whether both sides have as many tasks as an interval needs."""
        return min(self.tasks, self.tasks_without) >= LEAST


def utilities(
    items: Sequence[Experience],
    trajectories: Iterable[Trajectory],
    *,
    cues: tuple[CueExtractor, ...] = GENERIC,
    resamples: int = 2000,
    seed: int = 0,
    together: bool = False,
) -> tuple[Utility, ...]:
    """The utility of every item, in the pool's order, with 95 % intervals. `cues` are what its rules can name.

    `together` widens the intervals (Bonferroni) so that the upper bounds of all items with `LEAST` tasks a side hold
    together with 95 %: for picking out the worst of many.
    """
    scored = [t for t in trajectories if t.score is not None]
    usage = {use.item_id: use.selected for use in count_usage(scored)}
    unaided = [(t, [situation for situation, _ in decisions(t)]) for t in scored if t.pattern == "none"]
    sides = [_sides(item, scored, unaided, cues) for item in items]
    tested = sum(min(len(side.shown), len(side.without)) >= LEAST for side in sides)
    level = 1 - 0.1 / max(2, tested) if together else 0.95
    found = []
    for item, side in zip(items, sides, strict=True):
        compared = [side.base[unit] for unit in side.shown if unit in side.base]
        relative = _above(side.without, side), _above(side.shown, side)
        utility = Utility(
            item_id=item.id,
            selected=usage.get(item.id, 0),
            episodes=side.episodes,
            tasks=len(side.shown),
            success=_mean(side.shown.values()),
            tasks_without=len(side.without),
            success_without=_mean(compared),
            difference=difference_of_means(*relative, resamples, seed, level),
        )
        found.append(utility)
    return tuple(found)


def retire(pool: ExperiencePool, measured: Iterable[Utility], *, most: int = 1) -> tuple[PoolEdit, ...]:
    """DELETE edits for the items of `pool` that measurably harm, the worst first, at most `most`.

    Measurably: the interval lies below zero and rests on `LEAST` tasks a side. Items shown together share the blame, so
    by default one goes at a time: without the worst, the others may turn out harmless.
    """
    held = {item.id for item in pool.items}
    sure = [(u, u.difference) for u in measured if u.item_id in held and u.sure]
    harmful = [(u, difference) for u, difference in sure if difference is not None and difference.high < 0]
    worst = sorted(harmful, key=lambda pair: (pair[1].mean, pair[0].item_id))[:most]
    return tuple(PoolEdit(op="DELETE", targets=(u.item_id,), reason=_reason(u, d), cause="retired") for u, d in worst)


def retired_ids(edits: Iterable[PoolEdit]) -> frozenset[str]:
    """The ids of items that an edit log retired."""
    return frozenset(i for edit in edits if edit.cause == "retired" for i in edit.targets)


def without_retired(edits: Iterable[PoolEdit], retired: frozenset[str]) -> tuple[PoolEdit, ...]:
    """The edits without those that bring a retired item back, or remove what such edits brought."""
    return tuple(
        edit
        for edit in edits
        if not (edit.op == "ADD" and edit.item is not None and edit.item.id in retired)
        and not (edit.op == "DELETE" and set(edit.targets) <= retired)
    )


class _Sides(NamedTuple):
    """Mean score by unit (a task under one set of weights); `base`: mean without the item under the unit's weights."""

    episodes: int
    shown: dict[str, float]
    without: dict[str, float]
    base: dict[str, float]


def _sides(
    item: Experience,
    scored: Sequence[Trajectory],
    unaided: Sequence[tuple[Trajectory, Sequence[Situation]]],
    cues: tuple[CueExtractor, ...],
) -> _Sides:
    """The two sides of an item. `unaided` are the episodes without experience and their situations."""
    shown = [t for t in scored if any(step.injection and item.id in step.injection.item_ids for step in t.steps)]
    weights, tasks = {t.checkpoint for t in shown}, {t.task_id for t in shown}
    rule = parse(item.text, cues)
    without = [
        t
        for t, situations in unaided
        if t.checkpoint in weights
        and (any(applies(rule, situation) for situation in situations) if rule else t.task_id in tasks)
    ]
    units = {_unit(t): t.checkpoint for t in (*shown, *without)}
    plain = _by_unit(without)
    means = {w: _mean(score for unit, score in plain.items() if units[unit] == w) for w in weights}
    base = {unit: mean for unit, w in units.items() if (mean := means[w]) is not None}
    return _Sides(len(shown), _by_unit(shown), plain, base)


def _unit(trajectory: Trajectory) -> str:
    return f"{trajectory.checkpoint} {trajectory.task_id}"


def _by_unit(trajectories: Iterable[Trajectory]) -> dict[str, float]:
    means = task_means((_unit(t), t.score) for t in trajectories)
    return {unit: mean for unit, mean in means.items() if mean is not None}


def _above(scores: Mapping[str, float], side: _Sides) -> Scores:
    """Scores minus the score of the same weights without the item; None for a unit without a comparison."""
    return {unit: score - side.base[unit] if unit in side.base else None for unit, score in scores.items()}


def _mean(scores: Iterable[float]) -> float | None:
    known = list(scores)
    return sum(known) / len(known) if known else None


def _reason(utility: Utility, difference: Interval) -> str:
    shown, without = utility.success or 0.0, utility.success_without or 0.0
    return (
        f"retired: success {shown:.0%} on {utility.tasks} tasks with it, {without:.0%} on {utility.tasks_without} "
        f"without, {100 * difference.mean:+.0f} points [{100 * difference.low:+.0f}, {100 * difference.high:+.0f}]"
    )
