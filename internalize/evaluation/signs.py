"""Computes the warning signs of collapse from the measurements of a run; a sign past its threshold is a `Caution`.

Signs that can precede a fall in success are items that name pages instead of strategies, answers without evidence,
longer episodes, and a policy that no longer gains from its pool.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import NormalDist

from pydantic import Field

from internalize.errors import UserError
from internalize.records import Drift, Experience, Mode, Record, TrainSummary

from .behaviour import Behaviour
from .metrics import SuiteMetrics
from .pool_health import pool_health
from .stats import LEAST_TASKS, Interval, fisher_greater


class Thresholds(Record):
    """When a sign becomes a caution. Growth is relative to iteration 0 of the same suite and mode."""

    premature_rise: float = Field(0.10, description="Rise of the premature rate, absolute.")
    truncated_rise: float = Field(0.10, description="Rise of the truncated rate, absolute.")
    invalid_rise: float = Field(0.05, description="Rise of the invalid rate, absolute.")
    turns_growth: float = Field(1.5, description="Turns per episode, relative to the starter.")
    length_growth: float = Field(1.5, description="Action tokens per turn, relative to the starter.")
    nll_shrink: float = Field(
        0.25, description="Lowest mean NLL, relative to the starter; below it the actions hardly vary."
    )
    least_strategy: float = Field(0.5, description="Lowest share of principle items that state a strategy.")
    most_leak: float = Field(0.25, description="Highest share of items with details of single tasks.")
    kl_to_base: float = Field(0.5, description="KL(policy || starter) on actions of the policy, nats per token.")
    forgetting: float = Field(0.1, description="Rise of the mean NLL of held-out text, nats per token.")
    entropy_shrink: float = Field(0.25, description="Lowest action entropy, relative to the starter.")
    most_rejected: float = Field(0.8, description="Highest share of teacher trajectories rejected.")
    accepted_fall: float = Field(0.15, description="Fall of the accepted share below the best iteration so far.")
    repeated_rise: float = Field(
        0.10, description="Rise of the share of actions that repeat an earlier one of their episode."
    )
    malformed_rise: float = Field(0.05, description="Rise of the share of turns with a malformed call.")
    spread_shrink: float = Field(
        0.6, description="Lowest effective number of items shown (e to the entropy), relative to the best iteration."
    )


def thresholds(changed: Iterable[str]) -> Thresholds:
    """The default thresholds with changes, each written as sign=value. Raises UserError naming the sign."""
    values = {}
    for text in changed:
        sign, _, value = text.partition("=")
        if sign not in Thresholds.model_fields:
            known = ", ".join(Thresholds.model_fields)
            raise UserError(f"threshold {text!r}: unknown sign; the thresholds are {known}")
        number = _finite(value)
        if number is None:
            default = Thresholds.model_fields[sign].default
            raise UserError(f"threshold {text!r}: {value!r} is not a finite number; an example is {sign}={default}")
        values[sign] = number
    return Thresholds(**values)


def _finite(text: str) -> float | None:
    # No value is above or below nan or inf, so such a threshold would silently switch its sign off.
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# One-sided level of the tests that a rate or a difference must pass at every iteration. With it, some sign fires in at
# most about one in ten runs of ten iterations in which nothing changes (benchmarks/false_alarms.py).
CHANCE = 0.01


class Caution(Record):
    """One sign past its threshold. `sign` is a field of `Thresholds`, or the name of a comparison without one.

    `mode` is the mode of evaluation; None if the sign does not come from evaluation episodes.
    """

    sign: str
    iteration: int
    suite: str = ""
    mode: Mode | None = None
    value: float
    threshold: float
    message: str


class Sign(Record):
    """One sign in one mode: the iterations at which it fired, and its first message."""

    name: str
    mode: Mode | None
    iterations: tuple[int, ...]
    message: str


class Observed(Record):
    """The measurements of one iteration that the signs use; None or empty = not measured."""

    number: int
    internalized: SuiteMetrics | None = None
    in_context: SuiteMetrics | None = None
    further: tuple[SuiteMetrics, ...] = Field((), description="Metrics of the suites other than the main one.")
    behaviour: dict[Mode, Behaviour] = Field(default_factory=dict, description="Behaviour on the main suite, by mode.")
    pool: tuple[Experience, ...] | None = None
    training: TrainSummary | None = None
    drift: Drift | None = None


def cautions(
    earlier: Sequence[Observed],
    now: Observed,
    entities: Collection[str] = (),
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
) -> tuple[Caution, ...]:
    """The cautions of one iteration compared with earlier ones; `entities` are names that belong to single tasks."""
    raised = list(pool_cautions(now.pool or (), now.number, entities, limits))
    if now.training is not None and now.training.rejected is not None:
        shares = [s for i in earlier if i.training and (s := i.training.accepted_share) is not None]
        best = max(shares, default=None)
        raised += filter_cautions(now.training.accepted, now.training.rejected, now.number, limits, best)
    starter = next((i for i in earlier if i.number == 0), None)
    if starter is not None and starter.drift and now.drift:
        raised += weight_cautions(starter.drift, now.drift, now.number, limits)
    if now.number > 0:
        for line in (now.internalized, now.in_context):
            raised += _line_cautions(earlier, now, line, limits) if line else ()
        for line in now.further:
            raised += suite_cautions(line)
    return tuple(raised)


def _line_cautions(earlier: Sequence[Observed], now: Observed, line: SuiteMetrics, limits: Thresholds) -> list[Caution]:
    mode = line.mode
    lines: dict[int, SuiteMetrics | None] = {i.number: getattr(i, mode) for i in earlier}
    # Without a starter, the line is compared with itself, so that only its gains can raise a caution.
    raised = list(drift_cautions(lines.get(0) or line, line, limits, last=lines.get(now.number - 1)))
    known = [i.behaviour[mode] for i in earlier if mode in i.behaviour]
    if mode in now.behaviour:
        widest = max((b.spread for b in known if b.spread is not None), default=None)
        raised += behaviour_cautions(known[0] if known else Behaviour(), now.behaviour[mode], line, limits, widest)
    return raised


def signs(cautions: Sequence[Caution]) -> tuple[Sign, ...]:
    """The cautions of one run grouped by sign and mode, ordered by the iteration at which each first fired."""
    groups: dict[tuple[str, Mode | None], list[Caution]] = {}
    for caution in cautions:
        groups.setdefault((caution.sign, caution.mode), []).append(caution)
    found = [
        Sign(name=name, mode=mode, iterations=tuple(c.iteration for c in group), message=group[0].message)
        for (name, mode), group in groups.items()
    ]
    return tuple(sorted(found, key=lambda sign: sign.iterations[0]))


def rejection_rate(accepted: int, rejected: int) -> float | None:
    """Share of trajectories that the filter rejected; None if there were no trajectories."""
    return rejected / (accepted + rejected) if accepted + rejected else None


def pool_cautions(
    items: Sequence[Experience],
    iteration: int,
    entities: Collection[str] = (),
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
) -> tuple[Caution, ...]:
    """Too few principle items with a strategy, or too many with task details; instance items may have details."""
    principles = [item for item in items if item.granularity == "principle"]
    if not principles:
        return ()
    health = pool_health(principles, entities)
    raised = []
    if health.strategy_share < limits.least_strategy:
        text = f"only {health.strategy_share:.0%} of the principle items state a strategy"
        raised.append(_caution("least_strategy", iteration, health.strategy_share, limits.least_strategy, text))
    if health.leak_share > limits.most_leak:
        text = f"{health.leak_share:.0%} of the principle items contain details of single tasks"
        raised.append(_caution("most_leak", iteration, health.leak_share, limits.most_leak, text))
    return tuple(raised)


def filter_cautions(
    accepted: int,
    rejected: int,
    iteration: int,
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
    best: float | None = None,
) -> tuple[Caution, ...]:
    """A filter that rejects almost everything, or accepts less than `best`, the highest share accepted before."""
    rate = rejection_rate(accepted, rejected)
    if rate is None:
        return ()
    raised = []
    if rate > limits.most_rejected:
        text = f"{rate:.0%} of {accepted + rejected} trajectories were rejected"
        raised.append(_caution("most_rejected", iteration, rate, limits.most_rejected, text))
    judged = accepted + rejected
    # The best of several iterations is likely too high by chance, hence the stricter level.
    if best is not None and _rose((1 - rate, judged), (best, judged), limits.accepted_fall, CHANCE / 2):
        text = f"accepted trajectories fell from {best:.0%} to {1 - rate:.0%}"
        raised.append(_caution("accepted_fall", iteration, best - (1 - rate), limits.accepted_fall, text))
    return tuple(raised)


def behaviour_cautions(
    starter: Behaviour,
    now: Behaviour,
    line: SuiteMetrics,
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
    widest: float | None = None,
) -> tuple[Caution, ...]:
    """Episodes that repeat actions, or are shown ever fewer items (`widest`: the highest spread before)."""
    raised = []
    old, new = starter.repetition, now.repetition
    bound = limits.repeated_rise
    if old is not None and new is not None and _rose((old, starter.episodes), (new, now.episodes), bound):
        raised.append(("repeated_rise", new - old, bound, f"repeated actions rose from {old:.0%} to {new:.0%}"))
    old, new, bound = starter.malformation, now.malformation, limits.malformed_rise
    if old is not None and new is not None and _rose((old, starter.episodes), (new, now.episodes), bound):
        raised.append(("malformed_rise", new - old, bound, f"malformed calls rose from {old:.0%} to {new:.0%}"))
    if widest and now.spread is not None and now.spread / widest < limits.spread_shrink:
        text = f"the selector shows fewer different items: effectively {now.spread:.1f}, before up to {widest:.1f}"
        raised.append(("spread_shrink", now.spread / widest, limits.spread_shrink, text))
    return tuple(_of_line(line, sign) for sign in raised)


def weight_cautions(
    starter: Drift,
    now: Drift,
    iteration: int,
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
) -> tuple[Caution, ...]:
    """A policy that is far from the starter, forgets plain text, or has lost its entropy."""
    raised = []
    if now.kl_to_base is not None and now.kl_to_base > limits.kl_to_base:
        text = f"the KL divergence of the policy from the starter is {now.kl_to_base:.2f} nats per token"
        raised.append(_caution("kl_to_base", iteration, now.kl_to_base, limits.kl_to_base, text))
    if starter.held_out_nll and now.held_out_nll and now.held_out_nll - starter.held_out_nll > limits.forgetting:
        rise = now.held_out_nll - starter.held_out_nll
        text = f"held-out text is forgotten: NLL rose from {starter.held_out_nll:.2f} to {now.held_out_nll:.2f} nats"
        raised.append(_caution("forgetting", iteration, rise, limits.forgetting, text))
    if starter.entropy and now.entropy is not None and now.entropy / starter.entropy < limits.entropy_shrink:
        text = f"the actions hardly vary: their entropy fell from {starter.entropy:.3f} to {now.entropy:.3f} nats"
        raised.append(_caution("entropy_shrink", iteration, now.entropy / starter.entropy, limits.entropy_shrink, text))
    return tuple(raised)


def drift_cautions(
    starter: SuiteMetrics,
    now: SuiteMetrics,
    limits: Thresholds = Thresholds(),  # noqa: B008 - frozen
    last: SuiteMetrics | None = None,
) -> tuple[Caution, ...]:
    """Changes from the starter to `now` (same suite and mode) that exceed the thresholds; those of success come last.

    `last` is the line of the previous iteration: one loss on few tasks may be noise, two in a row are a sign.
    """
    signs = (*_rises(starter, now, limits), *_ratios(starter, now, limits), *_losses(now), *_twice(last, now))
    return tuple(_of_line(now, sign) for sign in signs)


def suite_cautions(now: SuiteMetrics) -> tuple[Caution, ...]:
    """A further suite on which success is significantly below that of the starter."""
    gain = now.gain_over_starter
    if gain is None or not _below_zero(gain):
        return ()
    text = f"{now.suite} is forgotten: success is {-100 * gain.mean:.1f} points below the starter's"
    return (_of_line(now, ("suite_forgotten", gain.mean, 0.0, text)),)


_Sign = tuple[str, float, float, str]


def _of_line(line: SuiteMetrics, sign: _Sign) -> Caution:
    name, value, bound, text = sign
    return _caution(name, line.iteration, value, bound, text).model_copy(
        update={"suite": line.suite, "mode": line.mode}
    )


def _rises(starter: SuiteMetrics, now: SuiteMetrics, limits: Thresholds) -> Iterable[_Sign]:
    watched = (
        ("premature_rise", "premature answers", starter.premature_rate, now.premature_rate, limits.premature_rise),
        ("truncated_rise", "truncated episodes", starter.truncated_rate, now.truncated_rate, limits.truncated_rise),
        ("invalid_rise", "invalid actions", starter.invalid_rate, now.invalid_rate, limits.invalid_rise),
    )
    for sign, name, old, new, bound in watched:
        if _rose((old, starter.results), (new, now.results), bound):
            yield sign, new - old, bound, f"{name} rose from {old:.0%} to {new:.0%}"


def _ratios(starter: SuiteMetrics, now: SuiteMetrics, limits: Thresholds) -> Iterable[_Sign]:
    old_length, new_length = (m.action_tokens / m.turns if m.turns else 0.0 for m in (starter, now))
    watched = (
        ("turns_growth", "turns per episode", starter.turns, now.turns, limits.turns_growth),
        ("length_growth", "tokens per action", old_length, new_length, limits.length_growth),
    )
    for sign, name, old, new, bound in watched:
        if old > 0 and new / old > bound:
            yield sign, new / old, bound, f"{name} grew from {old:.1f} to {new:.1f}"
    if starter.nll > 0 and now.results and now.nll / starter.nll < limits.nll_shrink:
        text = f"the actions hardly vary: NLL fell from {starter.nll:.3f} to {now.nll:.3f} nats per token"
        yield "nll_shrink", now.nll / starter.nll, limits.nll_shrink, text


def _losses(now: SuiteMetrics) -> Iterable[_Sign]:
    gain, context = now.gain_over_starter, now.in_context_gain
    if gain is not None and _below_zero(gain):
        yield "below_starter", gain.mean, 0.0, f"success is {-100 * gain.mean:.1f} points below the starter's"
    if context is not None and _below_zero(context):
        yield "pool_hurts", context.mean, 0.0, f"the pool in context costs {-100 * context.mean:.1f} points of success"


def _twice(last: SuiteMetrics | None, now: SuiteMetrics) -> Iterable[_Sign]:
    before, after = (line.in_context_gain if line else None for line in (last, now))
    if before is not None and after is not None and max(before.mean, after.mean) < 0 and _below_zero(before, after):
        text = (
            f"the pool in context costs success twice in a row: {-100 * before.mean:.1f}, then {-100 * after.mean:.1f}"
        )
        yield "pool_hurts_twice", after.mean, 0.0, f"{text} points"


def _rose(old: tuple[float, int], new: tuple[float, int], bound: float, level: float = CHANCE) -> bool:
    """Whether a share rose by more than `bound` and significantly (Fisher's test); each is (share, episodes).

    A share of steps is tested with the number of episodes too: steps of one episode are strongly dependent, so the
    steps of forty episodes carry about as much information as forty independent observations.
    """
    (before, of_before), (after, of_after) = old, new
    if after - before <= bound:
        return False
    return fisher_greater(round(after * of_after), of_after, round(before * of_before), of_before) < level


def _below_zero(*changes: Interval) -> bool:
    """Whether the sum of independent paired differences is below zero at the level `CHANCE`.

    The standard error is taken about zero, the null hypothesis. With one attempt a task this is McNemar's test: tasks
    lost minus tasks won, divided by the root of their sum. The error about the mean, on which the 95 % intervals rest,
    is too small if few tasks changed.
    """
    if min(change.n for change in changes) < LEAST_TASKS:
        return False
    normal = NormalDist()
    about_mean = [(change.high - change.low) / (2 * normal.inv_cdf(0.975)) for change in changes]
    variances = [error**2 + change.mean**2 / change.n for error, change in zip(about_mean, changes, strict=True)]
    total = math.fsum(change.mean for change in changes)
    return total < normal.inv_cdf(CHANCE) * math.sqrt(math.fsum(variances))


def _caution(sign: str, iteration: int, value: float, bound: float, text: str) -> Caution:
    return Caution(sign=sign, iteration=iteration, value=value, threshold=bound, message=text)
