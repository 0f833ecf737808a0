"""Every diagnostic over the iterations, as curves and as a table, if it was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from internalize.evaluation.metrics import SuiteMetrics
from internalize.evaluation.pool_health import PoolHealth
from internalize.records import Drift, Mode, TrainSummary

from .page import Table
from .run_report import RunReport, changes
from .text import NOTHING, one_line

OfT = TypeVar("OfT")
BEFORE = "before"  # with a new pool, before training on it
MODES: tuple[Mode, ...] = ("in_context", "internalized")  # drawn in this order, the second on top
MEASURED = {"internalized": "without", "in_context": "with pool", BEFORE: "with pool, before training"}
Points = list[tuple[int, float]]


class Panel(NamedTuple):
    """A title and up to three curves; one that is of no mode is drawn like the policy without experience."""

    title: str
    curves: Mapping[Any, Points]  # mode -> (iteration, value)


_OF_LINE: dict[str, Callable[[SuiteMetrics], float | None]] = {
    "turns per episode": lambda line: line.turns,
    "tokens per action": lambda line: line.action_tokens / line.turns if line.turns else None,
    "invalid actions, %": lambda line: 100 * line.invalid_rate,
    "truncated episodes, %": lambda line: 100 * line.truncated_rate,
    "premature answers, %": lambda line: 100 * line.premature_rate,
    "NLL, nats per token": lambda line: line.nll,
}
_OF_POOL: dict[str, Callable[[PoolHealth], float | None]] = {
    "items in the pool": lambda health: float(health.items),
    "items that state a strategy, %": lambda health: 100 * health.strategy_share if health.items else None,
    "items with details of tasks, %": lambda health: 100 * health.leak_share if health.items else None,
}
_OF_TRAINING: dict[str, Callable[[TrainSummary], float | None]] = {
    "accepted to train on, %": lambda training: _percent(training.accepted_share),
    "loss of the first step, nats": lambda training: training.first_loss,
    "loss of the last step, nats": lambda training: training.last_loss,
    "held-out loss before, nats": lambda training: training.held_out_before,
    "held-out loss after, nats": lambda training: training.held_out_after,
}
_OF_DRIFT: dict[str, Callable[[Drift], float | None]] = {
    "action entropy, nats": lambda drift: drift.entropy,
    "KL to the starter, nats": lambda drift: drift.kl_to_base,
}


def panels(report: RunReport) -> list[Panel]:
    """The panels of which anything was measured."""
    return [panel for panel in _panels(report) if any(panel.curves.values())]


def table(report: RunReport) -> Table:
    """Every diagnostic, its mode of evaluation, and its value at each iteration."""
    names = {i.number: "starter" if i.number == 0 else str(i.number) for i in report.iterations}
    rows = [
        {
            "diagnostic": panel.title,
            "measured": MEASURED.get(mode, NOTHING),
            **{name: _cell(dict(points).get(k)) for k, name in names.items()},
        }
        for panel in panels(report)
        for mode, points in panel.curves.items()
        if points
    ]
    return Table(rows, text=("diagnostic", "measured"), folded="The numbers behind the curves")


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _panels(report: RunReport) -> Iterator[Panel]:
    iterations, learnt = report.iterations, [i for i in report.iterations if i.number]
    lines = {mode: [(i.number, _scored(getattr(i, mode))) for i in iterations] for mode in MODES}
    for title, of_line in _OF_LINE.items():
        yield Panel(title, {mode: _points(found, of_line) for mode, found in lines.items()})
    # The gain of each pool twice: before the policy was trained with it, and after.
    after = [(i.number, i.in_context) for i in learnt]
    before = [(i.number, report.before(i.number)) for i in learnt]
    yield Panel("gain of the pool, points", {"in_context": _points(after, _gain), BEFORE: _points(before, _gain)})
    counts = {mode: [(i.number, i.behaviour.get(mode)) for i in iterations] for mode in MODES}
    repeated = {mode: _points(found, lambda b: _percent(b.repetition)) for mode, found in counts.items()}
    yield Panel("repeated actions, %", repeated)
    yield Panel("different items shown", {"in_context": _points(counts["in_context"], lambda b: b.spread)})
    health = [(change.number, change.health) for change in changes(iterations, report.entities)]
    for title, of_pool in _OF_POOL.items():
        yield Panel(title, {"": _points(health, of_pool)})
    training, drift = [(i.number, i.training) for i in iterations], [(i.number, i.drift) for i in iterations]
    for title, of_training in _OF_TRAINING.items():
        yield Panel(title, {"": _points(training, of_training)})
    for title, of_drift in _OF_DRIFT.items():
        yield Panel(title, {"": _points(drift, of_drift)})
    if report.starter and (first := report.starter.drift):
        rise = _points(drift, lambda now: now.held_out_nll - first.held_out_nll)
        yield Panel("forgotten: NLL of plain text, rise", {"": rise})
    for suite in report.settings.further:  # measured at every iteration beside the main one
        found = [(i.number, report.line(suite, "internalized", i.number)) for i in iterations]
        success = _points(found, lambda line: 100 * line.success.mean if line.success else None)
        yield Panel(f"success on {one_line(suite, 30)}, %", {"internalized": success})


def _points(found: Sequence[tuple[int, OfT | None]], value: Callable[[OfT], float | None]) -> Points:
    """The values that are known."""
    return [(k, known) for k, one in found if one is not None and (known := value(one)) is not None]


def _scored(line: SuiteMetrics | None) -> SuiteMetrics | None:
    return line if line and line.results else None


def _gain(line: SuiteMetrics) -> float | None:
    return 100 * line.in_context_gain.mean if line.in_context_gain else None
