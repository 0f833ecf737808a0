"""Every diagnostic over the iterations: small panels for the page of a run, and the same numbers as rows of a table.

Left out: success (figure.py). What must not change: of what was not measured there is no panel and no row, and every
panel of which no value can be negative starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from internalize.evaluation.metrics import SuiteMetrics

from .figure import GRID, INK, STYLES
from .growth import changes
from .run_report import IterationReport, RunReport
from .tables import Row
from .text import NOTHING, one_line

COLUMNS = 4
BEFORE = "before"  # with a pool, on the policy that has yet to be trained with it
UNLEARNT = (BEFORE, "with the pool, before it is learnt", "#9ca3af", (0, (1, 2)), "^")
MEASURED = {"internalized": "without", "in_context": "with pool", BEFORE: "with pool, before training"}
Points = list[tuple[int, float]]


class Panel(NamedTuple):
    """A title and up to three curves; one that is of no mode is drawn like the policy without experience."""

    title: str
    curves: dict[str, Points]  # mode -> (iteration, value)


_LINES: tuple[tuple[str, Callable[[SuiteMetrics], float | None]], ...] = (
    ("turns an episode", lambda line: line.turns),
    ("tokens an action", lambda line: line.action_tokens / line.turns if line.turns else None),
    ("invalid actions, %", lambda line: 100 * line.invalid_rate),
    ("truncated episodes, %", lambda line: 100 * line.truncated_rate),
    ("premature answers, %", lambda line: 100 * line.premature_rate),
    ("NLL, nats a token", lambda line: line.nll),
)
_LOSSES = (
    ("loss of the first step, nats", "first_loss"),
    ("loss of the last step, nats", "last_loss"),
    ("held-out loss before, nats", "held_out_before"),
    ("held-out loss after, nats", "held_out_after"),
)
_DRIFT = (
    ("action entropy, nats", "entropy"),
    ("KL to the starter, nats", "kl_to_base"),
)
_SIGNED = ("gain", "forgotten")  # first words of panels whose values may be negative


def panels(report: RunReport) -> list[Panel]:
    """The panels of which anything was measured."""
    iterations = report.iterations
    found = (
        *_of_lines(iterations),
        _gain(report),
        *_of_behaviour(iterations),
        *_of_pool(report),
        *_of_training(iterations),
        *_of_drift(iterations),
        *_of_suites(report),
    )
    return [panel for panel in found if any(panel.curves.values())]


def rows(report: RunReport) -> tuple[Row, list[Row]]:
    """Head and rows: every diagnostic, in which mode it was measured, and its value at each iteration."""
    numbers = [i.number for i in report.iterations]
    head = ("diagnostic", "measured", *("starter" if k == 0 else str(k) for k in numbers))
    found = [
        (panel.title, MEASURED.get(mode, NOTHING), *(_cell(dict(points).get(k)) for k in numbers))
        for panel in panels(report)
        for mode, points in panel.curves.items()
        if points
    ]
    return head, found


def _cell(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}"


def _of_lines(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    for title, value in _LINES:
        curves = {}
        for mode, *_ in STYLES:
            lines = [(i.number, getattr(i, mode)) for i in iterations]
            curves[mode] = _known((k, value(line) if line and line.results else None) for k, line in lines)
        yield Panel(title, curves)


def _gain(report: RunReport) -> Panel:
    """Of each pool twice: before the policy was trained with it, and after."""
    after = [(i.number, i.in_context.in_context_gain if i.in_context else None) for i in report.iterations if i.number]
    lines = [(i.number, report.before(i.number)) for i in report.iterations if i.number]
    before = [(k, line.in_context_gain if line else None) for k, line in lines]
    curves = {"in_context": after, BEFORE: before}
    return Panel(
        "gain of the pool, points",
        {mode: _known((k, g and 100 * g.mean) for k, g in found) for mode, found in curves.items()},
    )


def _of_behaviour(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    found = {mode: [(i.number, i.behaviour[mode]) for i in iterations if mode in i.behaviour] for mode, *_ in STYLES}
    repeated = {
        mode: _known((k, None if h.repetition is None else 100 * h.repetition) for k, h in counts)
        for mode, counts in found.items()
    }
    yield Panel("repeated actions, %", repeated)
    yield Panel("different items shown", {"in_context": _known((k, h.spread) for k, h in found["in_context"])})


def _of_pool(report: RunReport) -> Iterator[Panel]:
    found = [(change.number, change.health) for change in changes(report.iterations, report.entities)]
    yield Panel("items in the pool", {"": [(k, float(health.items)) for k, health in found]})
    filled = [(k, health) for k, health in found if health.items]
    yield Panel("items that state a strategy, %", {"": [(k, 100 * health.strategy_share) for k, health in filled]})
    yield Panel("items with details of tasks, %", {"": [(k, 100 * health.leak_share) for k, health in filled]})


def _of_training(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    shares = [(i.number, i.training.accepted_share if i.training else None) for i in iterations]
    yield Panel("accepted to train on, %", {"": _known((k, None if s is None else 100 * s) for k, s in shares)})
    for title, name in _LOSSES:
        yield Panel(title, {"": _known((i.number, getattr(i.training, name)) for i in iterations if i.training)})


def _of_drift(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    for title, name in _DRIFT:
        yield Panel(title, {"": _known((i.number, getattr(i.drift, name)) for i in iterations if i.drift)})
    texts = _known((i.number, i.drift.held_out_nll) for i in iterations if i.drift)
    starter = dict(texts).get(0)
    rises = [] if starter is None else [(k, value - starter) for k, value in texts]
    yield Panel("forgotten: NLL of plain text, rise", {"": rises})


def _of_suites(report: RunReport) -> Iterator[Panel]:
    """Success on the suites that are measured at every iteration beside the main one."""
    for suite in report.further:
        lines = [(i.number, report.line(suite, "internalized", i.number)) for i in report.iterations]
        success = _known((k, line.success and 100 * line.success.mean) for k, line in lines if line)
        yield Panel(f"success on {one_line(suite, 30)}, %", {"internalized": success})


def _known(points: Any) -> Points:
    return [(k, value) for k, value in points if value is not None]


def size(count: int) -> tuple[float, float]:
    """Width and height in inches of a figure of `count` panels."""
    return 12.0, 1.9 * -(-count // COLUMNS)


def plot(figure: Any, report: RunReport) -> None:
    """All panels into an empty figure."""
    found = panels(report)
    figure.get_layout_engine().set(h_pad=0.14)  # inches: room for the titles
    numbers = [i.number for i in report.iterations]
    grid = list(figure.subplots(-(-len(found) // COLUMNS), COLUMNS, squeeze=False).flat)
    for axes, panel in zip(grid, found, strict=False):
        _draw(axes, panel)
        axes.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
    for axes in grid[len(found) :]:
        axes.set_axis_off()


def _draw(axes: Any, panel: Panel) -> None:
    looks = {mode: (colour, dashes, marker) for mode, _, colour, dashes, marker in (*STYLES, UNLEARNT)}
    for mode, points in panel.curves.items():
        if not points:  # an empty unclipped line would upset the layout
            continue
        colour, dashes, marker = looks.get(mode, looks["internalized"])
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3.5, "linewidth": 1.4}
        axes.plot([k for k, _ in points], [value for _, value in points], clip_on=False, zorder=3, **look)
    title = axes.set_title(panel.title.replace("$", r"\$"), loc="left", fontsize=9.5, color=INK)
    title.set_in_layout(False)  # a long one would squeeze its column until no panel has any room
    if panel.title.startswith(_SIGNED):
        axes.axhline(0, color=INK, linewidth=0.8)
    else:
        least = 10.0 if panel.title.endswith("%") else 0.0  # so that one episode in forty looks like little
        axes.set_ylim(0, max(least, axes.get_ylim()[1]))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=8, length=0, colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
