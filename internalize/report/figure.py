"""The figure: success with and without the pool over the iterations, and premature answers below.

matplotlib is imported only here and only when a figure is drawn; without it there is none. Left out:
suites other than the main one (the tables have them). What must not change: success is always drawn
with its interval and on a scale from 0 to 100, so that small changes look small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from internalize.evaluation.metrics import SuiteMetrics

from .run_report import IterationReport, RunReport
from .signs import diagnose
from .text import one_line

TargetT = TypeVar("TargetT", Path, StringIO)
NOTE = "No figure: matplotlib is not installed (pip install 'internalize[plot]')."
FILE = "figure.png"
INK, GRID, PAPER, FALL = "#374151", "#e5e7eb", "white", "#be123c"
STYLES = (
    # field of IterationReport, label, colour, line, marker
    ("in_context", "with the pool in the prompt", "#d97706", (0, (4, 2)), "s"),
    ("internalized", "without experience (in the weights)", "#1d4ed8", "solid", "o"),
)


def write(report: RunReport, path: Path | None = None) -> Path | None:
    """Draw figure.png in the run directory (or at `path`); None without matplotlib or without measurements."""
    if not any(iteration.internalized for iteration in report.iterations):
        return None
    return save(path or report.path / FILE, lambda figure: plot(figure, report))


def plot(figure: Any, report: RunReport) -> None:
    """Both panels into an empty figure."""
    success, premature = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    for style in STYLES:
        _draw_success(success, report.iterations, style)
        _draw_line(premature, report.iterations, style, lambda line: line.premature_rate)
    _dress_success(success, report)
    _mark_collapse(success, report)
    _dress_premature(premature, report.iterations)


def save(target: TargetT, draw: Callable[[Any], None], size: tuple[float, float] = (7.6, 4.9)) -> TargetT | None:
    """Draw a figure of `size` inches with `draw` and save it: PNG in a file, SVG in memory; None without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        return None
    figure = Figure(figsize=size, dpi=160, facecolor=PAPER, layout="constrained")
    draw(figure)
    figure.savefig(target, format="png" if isinstance(target, Path) else "svg")
    return target


def _draw_success(axes: Any, iterations: Sequence[IterationReport], style: tuple[Any, ...]) -> None:
    scored = [(k, line.success) for k, line in _lines(iterations, style[0]) if line.success is not None]
    at = [k for k, _ in scored]
    low, high = [100 * s.low for _, s in scored], [100 * s.high for _, s in scored]
    if len(at) == 1:  # a band has no width at one point
        axes.vlines(at, low, high, color=style[2], alpha=0.25, linewidth=6)
    elif at:
        axes.fill_between(at, low, high, color=style[2], alpha=0.13, linewidth=0)
    _draw_line(axes, iterations, style, lambda line: line.success.mean if line.success else None)


def _draw_line(
    axes: Any,
    iterations: Sequence[IterationReport],
    style: tuple[Any, ...],
    value: Callable[[SuiteMetrics], float | None],
) -> None:
    field, label, colour, dashes, marker = style
    values = [(k, value(line)) for k, line in _lines(iterations, field) if line.results]
    kept = [(k, 100 * v) for k, v in values if v is not None]
    if not kept:  # an empty unclipped line would upset the layout
        return
    look = {"color": colour, "marker": marker, "markersize": 5, "clip_on": False, "zorder": 3}
    axes.plot([k for k, _ in kept], [v for _, v in kept], linestyle=dashes, linewidth=1.8, label=label, **look)
    hollow = [(k, height) for k, height in kept if k in _rolled_back(iterations)]
    if hollow:
        axes.plot([k for k, _ in hollow], [v for _, v in hollow], linestyle="none", markerfacecolor=PAPER, **look)


def _rolled_back(iterations: Sequence[IterationReport]) -> set[int]:
    return {i.number for i in iterations if i.decision is not None and not i.decision.promote}


def _lines(iterations: Sequence[IterationReport], field: str) -> list[tuple[int, SuiteMetrics]]:
    lines = [(iteration.number, getattr(iteration, field)) for iteration in iterations]
    return [(number, line) for number, line in lines if line is not None]


def _dress_success(axes: Any, report: RunReport) -> None:
    line = next(i.internalized for i in report.iterations if i.internalized)
    tasks = f", n = {line.success.n} tasks" if line.success else ""
    # "$" would open a formula.
    suite = one_line(report.suite, 40).replace("$", r"\$")
    hollow = "; hollow: rolled back" if _rolled_back(report.iterations) else ""
    title = f"Success on {suite}{tasks} (bands: 95 % intervals{hollow})"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK, pad=26)
    _dress(axes, "success, %")
    axes.set_ylim(0, 100)
    axes.set_yticks(range(0, 101, 20))
    handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 2, "borderaxespad": 0.2}
    axes.legend(handles[::-1], labels[::-1], fontsize=9, frameon=False, handlelength=2.8, labelcolor=INK, **place)


def _mark_collapse(axes: Any, report: RunReport) -> None:
    """A thin line where success fell for good."""
    found = diagnose(report).collapse
    if found is not None:
        axes.axvline(found.iteration, color=FALL, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate("collapse", (found.iteration, 97), (4, 0), textcoords="offset points", color=FALL, fontsize=8.5)


def _dress_premature(axes: Any, iterations: Sequence[IterationReport]) -> None:
    _dress(axes, "premature\nanswers, %")
    lines = [line for style in STYLES for _, line in _lines(iterations, style[0])]
    worst = max(100 * line.premature_rate for line in lines)
    axes.set_ylim(0, max(10.0, 1.2 * worst))
    numbers = [iteration.number for iteration in iterations]
    every = max(1, len(numbers) // 12)
    ticks = numbers[::every]
    axes.set_xticks(ticks, ["starter" if k == 0 else str(k) for k in ticks])
    axes.set_xlim(numbers[0] - 0.15, numbers[-1] + 0.15)
    axes.set_xlabel("iteration", fontsize=9.5, color=INK)


def _dress(axes: Any, label: str) -> None:
    axes.set_ylabel(label, fontsize=9.5, color=INK)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9ca3af")
