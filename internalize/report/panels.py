"""Every diagnostic over the iterations in its own small panel, for the page of a run.

Left out: success (figure.py). What must not change: a panel of which nothing was measured is not drawn, and every panel
but the gain of the pool starts at 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from internalize.metrics import SuiteMetrics

from .data import IterationReport, RunReport
from .figure import GRID, INK, STYLES

COLUMNS = 4
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
_DRIFT = (
    ("action entropy, nats", "entropy"),
    ("KL to the starter, nats", "kl_to_base"),
    ("plain text NLL, nats", "held_out_nll"),
)


def panels(iterations: Sequence[IterationReport]) -> list[Panel]:
    """The panels of which anything was measured."""
    found = [*_of_lines(iterations), *_of_habits(iterations), *_of_training(iterations), *_of_drift(iterations)]
    return [panel for panel in found if any(panel.curves.values())]


def _of_lines(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    for title, value in _LINES:
        curves = {}
        for mode, *_ in STYLES:
            lines = [(i.number, getattr(i, mode)) for i in iterations]
            curves[mode] = _known((k, value(line) if line and line.results else None) for k, line in lines)
        yield Panel(title, curves)
    gains = [(i.number, i.in_context.in_context_gain if i.in_context else None) for i in iterations]
    yield Panel("gain of the pool, points", {"in_context": _known((k, g and 100 * g.mean) for k, g in gains)})


def _of_habits(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    habits = {mode: [(i.number, i.habits[mode]) for i in iterations if mode in i.habits] for mode, *_ in STYLES}
    repeated = {
        mode: _known((k, None if h.repetition is None else 100 * h.repetition) for k, h in found)
        for mode, found in habits.items()
    }
    yield Panel("repeated actions, %", repeated)
    yield Panel("different items shown", {"in_context": _known((k, h.spread) for k, h in habits["in_context"])})


def _of_training(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    shares = [(i.number, i.training.accepted_share if i.training else None) for i in iterations]
    yield Panel("accepted to train on, %", {"": _known((k, None if s is None else 100 * s) for k, s in shares)})


def _of_drift(iterations: Sequence[IterationReport]) -> Iterator[Panel]:
    for title, name in _DRIFT:
        yield Panel(title, {"": _known((i.number, getattr(i.drift, name)) for i in iterations if i.drift)})


def _known(points: Any) -> Points:
    return [(k, value) for k, value in points if value is not None]


def size(count: int) -> tuple[float, float]:
    """Width and height in inches of a figure of `count` panels."""
    return 12.0, 1.9 * -(-count // COLUMNS)


def plot(figure: Any, report: RunReport) -> None:
    """All panels into an empty figure."""
    found = panels(report.iterations)
    numbers = [i.number for i in report.iterations]
    grid = list(figure.subplots(-(-len(found) // COLUMNS), COLUMNS, squeeze=False).flat)
    for axes, panel in zip(grid, found, strict=False):
        _draw(axes, panel)
        axes.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
    for axes in grid[len(found) :]:
        axes.set_axis_off()


def _draw(axes: Any, panel: Panel) -> None:
    looks = {mode: (colour, dashes, marker) for mode, _, colour, dashes, marker in STYLES}
    for mode, points in panel.curves.items():
        colour, dashes, marker = looks.get(mode, looks["internalized"])
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3.5, "linewidth": 1.4}
        axes.plot([k for k, _ in points], [value for _, value in points], clip_on=False, zorder=3, **look)
    axes.set_title(panel.title, loc="left", fontsize=9.5, color=INK)
    if panel.title.startswith("gain"):
        axes.axhline(0, color=INK, linewidth=0.8)
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.tick_params(labelsize=8, length=0, colors=INK)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
