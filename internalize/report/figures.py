"""The figures: success over the iterations of a run, its diagnostics as small panels, and the cells of a study.

matplotlib is imported only when a figure is drawn; without it there is none. Success is drawn with its interval and on
a scale from 0 to 100, so that small changes look small.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, TypeVar

from internalize.evaluation.metrics import SuiteMetrics
from internalize.evaluation.stats import Interval

from .comparison import Comparison, Curve
from .panels import BEFORE, Panel
from .run_report import IterationReport, RunReport
from .signs import diagnose
from .text import one_line

TargetT = TypeVar("TargetT", Path, StringIO)
NOTE = "No figure: matplotlib is not installed (pip install 'internalize[plot]')."
INK, GRID, PAPER, FALL = "#374151", "#e5e7eb", "white", "#be123c"
STYLES = (
    # field of IterationReport, label, colour, line, marker
    ("in_context", "with the pool in the prompt", "#d97706", (0, (4, 2)), "s"),
    ("internalized", "without experience (in the weights)", "#1d4ed8", "solid", "o"),
)
UNLEARNT = (BEFORE, "with the pool, before it is learnt", "#9ca3af", (0, (1, 2)), "^")
RUN_SIZE, STUDY_SIZE, PANEL_COLUMNS = (9.6, 5.2), (9.6, 7.6), 4  # inches
NARROW_RUN, NARROW_STUDY = (4.2, 5.2), (4.2, 17.0)
_SIGNED = ("gain", "forgotten")  # first words of panels whose values may be negative
# Okabe and Ito's colours for readers of every colour vision, without black (the reference) and yellow (too pale), and
# Tol's wine. The counts of colours, dashes and markers have no common divisor: 70 cells before two look the same.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")
DASHES = ("solid", (0, (5, 2)))
MARKERS = ("o", "s", "^", "D", "v")
STUDY_TITLES = (
    "Success without experience, %",
    "Success with the pool in the prompt, %",
    "With the pool minus without, points",
    "Premature answers without pool, %",
    "Turns per episode without pool",
)


def save(target: TargetT, draw: Callable[[Any], None], size: tuple[float, float]) -> TargetT | None:
    """Draw a figure of `size` inches with `draw` and save it: PNG in a file, SVG in memory; None without matplotlib."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to import
    except ImportError:
        return None
    figure = Figure(figsize=size, dpi=160, facecolor=PAPER, layout="constrained")
    draw(figure)
    figure.savefig(target, format="png" if isinstance(target, Path) else "svg")
    return target


def _is_wide(figure: Any) -> bool:
    return bool(figure.get_figwidth() > 6)


def _dress(axes: Any, size: float = 9) -> None:
    axes.tick_params(colors=INK, labelsize=size, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#9ca3af")


def _literal(text: str, limit: int) -> str:
    return one_line(text, limit).replace("$", r"\$")  # "$" would open a formula


def plot_run(figure: Any, report: RunReport) -> None:
    """Success with and without the pool over the iterations, and premature answers below."""
    success, premature = figure.subplots(2, 1, sharex=True, height_ratios=(2.6, 1))
    iterations = report.iterations
    undone = {i.number for i in iterations if i.undone}
    for field, *look in STYLES:
        lines = [(i.number, line) for i in iterations if (line := getattr(i, field)) is not None]
        _draw_bands(success, [(k, line.success) for k, line in lines if line.success], str(look[1]))
        _draw_line(success, lines, look, undone, lambda line: line.success.mean if line.success else None)
        _draw_line(premature, lines, look, undone, lambda line: line.premature_rate)
    for axes, label in ((success, "success, %"), (premature, "premature\nanswers, %")):
        _dress(axes)
        axes.set_ylabel(label, fontsize=9.5, color=INK)
    plain = next(i.internalized for i in iterations if i.internalized)
    tasks = f", n = {plain.success.n} tasks" if plain.success else ""
    hollow = "; hollow: rolled back" if undone else ""
    title = f"Success on {_literal(report.suite, 40)}{tasks} (bands: 95 % intervals{hollow})"
    wide = _is_wide(figure)
    title = title if wide else textwrap.fill(title, 44)
    success.set_title(
        title, loc="left", fontsize=11 if wide else 9, fontweight="bold", color=INK, pad=26 if wide else 40
    )
    success.set(ylim=(0, 100), yticks=range(0, 101, 20))
    handles, labels = success.get_legend_handles_labels()
    place = {"loc": "lower left", "bbox_to_anchor": (-0.01, 1.0), "ncols": 2 if wide else 1, "borderaxespad": 0.2}
    success.legend(handles[::-1], labels[::-1], fontsize=9, frameon=False, handlelength=2.8, labelcolor=INK, **place)
    _mark_collapse(success, report)
    worst = max(line.premature_rate for i in iterations for line in (i.internalized, i.in_context) if line)
    premature.set_ylim(0, max(10.0, 120 * worst))
    numbers = [iteration.number for iteration in iterations]
    ticks = numbers[:: max(1, -(-len(numbers) // (12 if wide else 6)))]
    premature.set_xticks(ticks, ["starter" if k == 0 else str(k) for k in ticks])
    premature.set_xlim(numbers[0] - 0.15, numbers[-1] + 0.15)
    premature.set_xlabel("iteration", fontsize=9.5, color=INK)


def _draw_bands(axes: Any, scored: Sequence[tuple[int, Interval]], colour: str) -> None:
    at, low, high = [k for k, _ in scored], [100 * i.low for _, i in scored], [100 * i.high for _, i in scored]
    if len(at) == 1:  # a band has no width at one point
        axes.vlines(at, low, high, color=colour, alpha=0.25, linewidth=6)
    elif at:
        axes.fill_between(at, low, high, color=colour, alpha=0.13, linewidth=0)


def _draw_line(
    axes: Any,
    lines: Sequence[tuple[int, SuiteMetrics]],
    look: Sequence[Any],
    undone: set[int],
    value: Callable[[SuiteMetrics], float | None],
) -> None:
    label, colour, dashes, marker = look
    points = [(k, 100 * v) for k, line in lines if line.results and (v := value(line)) is not None]
    if not points:  # an empty unclipped line would upset the layout
        return
    shape = {"color": colour, "marker": marker, "markersize": 5, "clip_on": False, "zorder": 3}
    axes.plot(*zip(*points, strict=True), linestyle=dashes, linewidth=1.8, label=label, **shape)
    if hollow := [(k, height) for k, height in points if k in undone]:
        axes.plot(*zip(*hollow, strict=True), linestyle="none", markerfacecolor=PAPER, **shape)


def _mark_collapse(axes: Any, report: RunReport) -> None:
    """A thin line where success fell for good."""
    found = diagnose(report).collapse
    if found is not None:
        axes.axvline(found.iteration, color=FALL, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
        axes.annotate("collapse", (found.iteration, 97), (4, 0), textcoords="offset points", color=FALL, fontsize=8.5)


def panels_size(count: int, columns: int = PANEL_COLUMNS) -> tuple[float, float]:
    """Width and height in inches of a figure of `count` panels."""
    return 3.0 * columns if columns > 1 else 4.2, 1.9 * -(-count // columns)


def plot_panels(figure: Any, panels: Sequence[Panel], iterations: Sequence[IterationReport]) -> None:
    """Every diagnostic in a panel of its own."""
    figure.get_layout_engine().set(h_pad=0.14)  # inches: room for the titles
    numbers = [i.number for i in iterations]
    columns = PANEL_COLUMNS if _is_wide(figure) else 1
    grid = list(figure.subplots(-(-len(panels) // columns), columns, squeeze=False).flat)
    for axes, panel in zip(grid, panels, strict=False):
        _draw_panel(axes, panel)
        axes.set_xlim(min(numbers) - 0.3, max(numbers) + 0.3)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()


def _draw_panel(axes: Any, panel: Panel) -> None:
    _dress(axes, 8)
    looks = {mode: (colour, dashes, marker) for mode, _, colour, dashes, marker in (*STYLES, UNLEARNT)}
    for mode, points in panel.curves.items():
        if not points:
            continue
        colour, dashes, marker = looks.get(mode, looks["internalized"])
        look = {"color": colour, "linestyle": dashes, "marker": marker, "markersize": 3.5, "linewidth": 1.4}
        axes.plot(*zip(*points, strict=True), clip_on=False, zorder=3, **look)
    title = axes.set_title(panel.title.replace("$", r"\$"), loc="left", fontsize=9.5, color=INK)
    title.set_in_layout(False)  # a long one would squeeze its column until no panel has any room
    if panel.title.startswith(_SIGNED):
        axes.axhline(0, color=INK, linewidth=0.8)
    else:
        least = 10.0 if panel.title.endswith("%") else 0.0  # so that one episode in forty looks like little
        axes.set_ylim(0, max(least, axes.get_ylim()[1]))
    axes.xaxis.get_major_locator().set_params(integer=True)


def plot_study(figure: Any, comparison: Comparison) -> None:
    """Success without and with the pool above, their difference and the behaviour below; every cell on one scale."""
    wide = _is_wide(figure)
    if wide:
        panels = figure.subplot_mosaic([[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 4, 4]], height_ratios=(1.7, 1))
    else:
        panels = figure.subplot_mosaic([[0], [1], [2], [3], [4]], height_ratios=(1.7, 1.7, 1, 1, 1))
    curves = comparison.curves
    longest = max((curve.last for curve in curves), default=0)
    for place, title in enumerate(STUDY_TITLES):
        axes = panels[place]
        _dress(axes, 8.5)
        axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK)
        axes.set(xlim=(-0.3, longest + 0.3), xticks=range(0, longest + 1, max(1, longest // 6)))
        axes.set_xlabel("iteration (0: the starter)", fontsize=8.5, color=INK)
    for number, curve in enumerate(curves):
        look = _look(number, curve, comparison)
        shift = min(0.04, 0.3 / len(curves)) * (number - (len(curves) - 1) / 2)  # bars side by side hide none
        for place, intervals in enumerate((curve.internalized, curve.in_context, curve.context_gains)):
            _draw_bars(panels[place], intervals, look, shift)
        for place, values in ((3, [rate and 100 * rate for rate in curve.premature]), (4, curve.turns)):
            if known := [(k, value) for k, value in enumerate(values) if value is not None]:
                panels[place].plot(*zip(*known, strict=True), clip_on=False, **look)
    for place in (0, 1, 3):
        panels[place].set(ylim=(0, 100), yticks=range(0, 101, 20))
    low, high = panels[2].get_ylim()
    panels[2].set_ylim(min(low, -10), max(high, 10))
    panels[2].axhline(0, color=INK, linewidth=1, zorder=1)
    panels[4].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    look = {"fontsize": 8, "frameon": False, "handlelength": 4.5, "labelcolor": INK}
    figure.legend(handles, labels, loc="outside lower center", ncols=2 if wide else 1, **look)


def _look(number: int, curve: Curve, comparison: Comparison) -> dict[str, Any]:
    """Colour, dashes and marker all tell a cell from the others; the reference is the heavy line below them."""
    if is_reference := curve.cell == comparison.reference:
        own = {"color": "black", "linestyle": "solid", "linewidth": 2.8, "zorder": 2}
    else:
        dashes, colour = DASHES[number % len(DASHES)], COLOURS[number % len(COLOURS)]
        own = {"color": colour, "linestyle": dashes, "linewidth": 1.4, "zorder": 3}
    label = textwrap.fill(f"{_literal(curve.cell, 160)}{' (reference)' if is_reference else ''}", 52)
    return {**own, "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5, "label": label}


def _draw_bars(axes: Any, intervals: Sequence[Interval | None], look: dict[str, Any], shift: float) -> None:
    """Means in percent or points, and their intervals."""
    known = [(k, i) for k, i in enumerate(intervals) if i is not None]
    if not known:
        return
    at, heights = [k + shift for k, _ in known], [100 * i.mean for _, i in known]
    errors = [[100 * (i.mean - i.low) for _, i in known], [100 * (i.high - i.mean) for _, i in known]]
    axes.errorbar(at, heights, yerr=errors, elinewidth=look["linewidth"] / 2, clip_on=False, **look)
