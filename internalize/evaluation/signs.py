"""Computes what a run is warned of: losses, and the two signs that were shown to come before a collapse.

The signs are a pool that costs success in the prompt, and episodes that repeat their own actions. Of twenty others
that were tried none was shown to tell an iteration before a collapse from any other (benchmarks/sign_curve.py,
docs/log.md); what they watched stands in the tables and figures of a run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from statistics import NormalDist

from pydantic import Field, ValidationError

from internalize.errors import UserError
from internalize.records import Mode, Record

from .behaviour import Behaviour
from .metrics import SuiteMetrics
from .stats import LEAST_TASKS, Interval, fisher_greater


class Thresholds(Record):
    """When a sign becomes a caution."""

    repeated_rise: float = Field(
        0.10, description="Rise of the share of actions that repeat an earlier one of their episode, absolute."
    )
    level: float = Field(
        0.01, gt=0, lt=0.5, description="One-sided level of the test that every loss and rise must pass."
    )


def thresholds(changed: Iterable[str]) -> Thresholds:
    """The default thresholds with changes, each written as name=value. Raises UserError naming the threshold."""
    values = {}
    for text in changed:
        name, _, value = text.partition("=")
        if name not in Thresholds.model_fields:
            known = ", ".join(Thresholds.model_fields)
            raise UserError(f"threshold {text!r}: unknown; the thresholds are {known}")
        number = _finite(value)
        if number is None:
            default = Thresholds.model_fields[name].default
            raise UserError(f"threshold {text!r}: {value!r} is not a finite number; an example is {name}={default}")
        values[name] = number
    try:
        return Thresholds(**values)
    except ValidationError as error:
        raise UserError(f"threshold 'level={values['level']:g}': a level is above 0 and below 0.5") from error


def _finite(text: str) -> float | None:
    # No value is above or below nan or inf, so such a threshold would silently switch its sign off.
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class Caution(Record):
    """One sign past its threshold, or one loss, in words; `mode` is the mode of evaluation."""

    sign: str
    iteration: int
    suite: str
    mode: Mode
    value: float
    message: str


class Sign(Record):
    """One sign in one mode: the iterations at which it fired, and its first message."""

    name: str
    mode: Mode
    iterations: tuple[int, ...]
    message: str


class Observed(Record):
    """The measurements of one iteration that the signs use; None or empty = not measured."""

    number: int
    internalized: SuiteMetrics | None = None
    in_context: SuiteMetrics | None = None
    further: tuple[SuiteMetrics, ...] = Field((), description="Metrics of the suites other than the main one.")
    behaviour: dict[Mode, Behaviour] = Field(default_factory=dict, description="Behaviour on the main suite, by mode.")


def cautions(
    earlier: Sequence[Observed],
    now: Observed,
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
) -> tuple[Caution, ...]:
    """The cautions of one iteration; repeated actions are compared with those of the first of `earlier`."""
    if now.number == 0:
        return ()
    raised: list[Caution] = []
    for line in (now.internalized, now.in_context):
        if line:
            starter = next((i.behaviour[line.mode] for i in earlier if line.mode in i.behaviour), None)
            if starter and line.mode in now.behaviour:
                raised += repeating(starter, now.behaviour[line.mode], line, limits)
            raised += losses(line, limits)
    for line in now.further:
        raised += losses(line, limits, "suite_forgotten")
    return tuple(raised)


def signs(cautions: Sequence[Caution]) -> tuple[Sign, ...]:
    """The cautions of one run grouped by sign and mode, ordered by the iteration at which each first fired."""
    groups: dict[tuple[str, Mode], list[Caution]] = {}
    for caution in cautions:
        groups.setdefault((caution.sign, caution.mode), []).append(caution)
    found = [
        Sign(name=name, mode=mode, iterations=tuple(c.iteration for c in group), message=group[0].message)
        for (name, mode), group in groups.items()
    ]
    return tuple(sorted(found, key=lambda sign: sign.iterations[0]))


def repeating(starter: Behaviour, now: Behaviour, line: SuiteMetrics, limits: Thresholds) -> Iterator[Caution]:
    """Whether actions repeat earlier ones of their episode more often than the starter's did."""
    old, new = starter.repetition, now.repetition
    # The repeated steps of one episode come together, so a share of steps is tested as one of so many episodes.
    if old is not None and new is not None and _rose((old, starter.episodes), (new, now.episodes), limits):
        yield _caution("repeated_rise", line, new - old, f"repeated actions rose from {old:.0%} to {new:.0%}")


def losses(line: SuiteMetrics, limits: Thresholds, name: str = "below_starter") -> Iterator[Caution]:
    """Whether success lies below the starter's (the caution `name`), or the pool in the prompt costs success."""
    gain, context = line.gain_over_starter, line.in_context_gain
    if gain is not None and _below_zero(gain, limits.level):
        where = f"{line.suite} is forgotten: " if name == "suite_forgotten" else ""
        text = f"{where}success is {-100 * gain.mean:.1f} points below the starter's"
        yield _caution(name, line, gain.mean, text)
    if context is not None and _below_zero(context, limits.level):
        text = f"the pool in context costs {-100 * context.mean:.1f} points of success"
        yield _caution("pool_hurts", line, context.mean, text)


def _rose(old: tuple[float, int], new: tuple[float, int], limits: Thresholds) -> bool:
    """Whether a share rose by more than the threshold and significantly (Fisher's test); each is (share, episodes)."""
    (before, of_before), (after, of_after) = old, new
    if after - before <= limits.repeated_rise:
        return False
    return fisher_greater(round(after * of_after), of_after, round(before * of_before), of_before) < limits.level


def _below_zero(change: Interval, level: float) -> bool:
    """Whether a paired difference is below zero at the one-sided `level`.

    The standard error is taken about zero, the null hypothesis. With one attempt a task this is McNemar's test: tasks
    lost minus tasks won, divided by the root of their sum. The error about the mean, on which the 95 % intervals rest,
    is too small if few tasks changed.
    """
    if change.n < LEAST_TASKS:
        return False
    normal = NormalDist()
    about_mean = (change.high - change.low) / (2 * normal.inv_cdf(0.975))
    return change.mean < normal.inv_cdf(level) * math.sqrt(about_mean**2 + change.mean**2 / change.n)


def _caution(sign: str, line: SuiteMetrics, value: float, text: str) -> Caution:
    return Caution(sign=sign, iteration=line.iteration, suite=line.suite, mode=line.mode, value=value, message=text)
