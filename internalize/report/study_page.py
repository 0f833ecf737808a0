"""study.md and study.png: what a study asked, its cells over the iterations, and how sure the differences are.

Left out: single runs (each has its own report). What must not change: names of cells go through `markdown_text`, a
figure draws every cell on one scale from 0 to 100 with its interval, and an unfinished study says so first.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from internalize.evaluation.stats import Interval
from internalize.report.comparison import (
    CELL_HEAD,
    VERSUS_HEAD,
    Comparison,
    Curve,
    cell_cost_rows,
    cell_rows,
    iteration_rows,
    versus_rows,
)
from internalize.runs.store import write_atomic

from .costs import CELL_COST_HEAD
from .figure import GRID, INK, NOTE, save
from .markdown import named, section, table
from .signs import LEAD_HEAD, lead_rows, verdict
from .terminal import plain_text, print_table
from .text import markdown_text, one_line

FILE, FIGURE = "study.md", "study.png"
SHOWN = 5  # columns of the cells that fit into a terminal; the page has all
SIZE = (9.6, 7.6)  # inches
# Okabe and Ito's colours for readers of every colour vision, without black (the reference) and yellow (too pale), and
# Tol's wine. The counts of colours, dashes and markers have no common divisor: 70 cells before two look the same.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#882255")
DASHES = ("solid", (0, (5, 2)))
MARKERS = ("o", "s", "^", "D", "v")
TITLES = (
    "Success without experience, %",
    "Success with the pool in the prompt, %",
    "With the pool minus without, points",
    "Premature answers without pool, %",
    "Turns an episode without pool",
)
EXPLAINED = (
    "Means over seeds and tasks of the suite measured at every iteration, with 95 % intervals: t intervals over seeds, "
    "widened for the tasks that they share; of one seed a bootstrap over tasks, which says nothing about other seeds. "
    "Where a gate rolled back, of the policy that it went back to. `gain`: last iteration minus starter, no experience "
    "in the prompt. `with pool`: what the pool in the prompt adds after the last iteration. `best`: the highest "
    "iteration. `retained`: share of what the last iteration's pool added in the prompt, before training, that was "
    "moved into the weights; nothing where it is open whether the pool added anything."
)
COST = (
    "Tokens and time of a run, averaged over seeds; the greatest memory of any. What cells share is in the time of the "
    "cell that played it. Memory is that of the process, which may have worked on several cells."
)
COMPARED = (
    "Paired by task and seed, after the last iteration that both have finished (a cell of another length: after its "
    "own), without experience in the prompt (a cell that trains nothing: with its pool). "
    "`won`, `lost`: tasks whose success over the seeds rose and fell. `p`: exact sign test "
    "over tasks, adjusted for the number of cells by Holm's method. `seen from`: the smallest difference that as many "
    "tasks and seeds, spread as these are, show with power 0.8 at the strictest step of Holm's method (0.05 over the "
    "number of comparisons); a smaller one may exist. A cell is called better or worse only if interval and "
    "test agree. With one seed that is a difference of two runs: how much runs of one recipe vary is not in it."
)


def publish(comparison: Comparison, out: Path) -> None:
    """Print the tables and write study.md and, where matplotlib is installed, study.png into `out`."""
    console = Console()
    console.print(plain_text(comparison.question, style="bold"))
    print_table(CELL_HEAD[:SHOWN], [row[:SHOWN] for row in cell_rows(comparison)], console)
    print_table(VERSUS_HEAD, versus_rows(comparison), console)
    if comparison.unfinished:
        console.print(plain_text(unfinished(comparison), style="yellow"))
    path = out / FILE
    write_atomic(path, render(comparison, draw(comparison, out / FIGURE)))
    Console(stderr=True).print(f"Written: {path}", highlight=False, soft_wrap=True)


def render(comparison: Comparison, drawn: Path | None) -> str:
    """The Markdown text; `drawn` is the figure to show, next to it."""
    head, rows = iteration_rows(comparison)
    parts = (
        f"# {markdown_text(comparison.question)}",
        markdown_text(unfinished(comparison), 4000),
        f"![Success over the iterations, cell by cell]({drawn.name})" if drawn else NOTE,
        section("Cells", table(CELL_HEAD, named(cell_rows(comparison))), EXPLAINED),
        section(
            f"Against {markdown_text(comparison.reference)}",
            table(VERSUS_HEAD, named(versus_rows(comparison))),
            COMPARED if comparison.versus else "",
        ),
        section("Iterations", table(head, named(rows))),
        _signs(comparison),
        section("Cost", table(CELL_COST_HEAD, named(cell_cost_rows(comparison))), COST),
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def unfinished(comparison: Comparison) -> str:
    """Which runs are missing; "" if none is."""
    missing = comparison.unfinished
    return f"Not finished: {len(missing)} runs: {'; '.join(missing)}." if missing else ""


def _signs(comparison: Comparison) -> str:
    found = comparison.diagnoses
    collapsed = "\n".join(f"- {markdown_text(verdict(one))}" for one in found if one.collapse)
    counted = f"Success fell for good in {sum(one.collapse is not None for one in found)} of {len(found)} runs."
    rows = [(name, where, markdown_text(first), *rest) for name, where, first, *rest in lead_rows(found)]
    return section("Warning signs", counted if found else "", collapsed, table(LEAD_HEAD, rows, text_columns=(0, 1)))


def draw(comparison: Comparison, path: Path) -> Path | None:
    """The figure of a study at `path`; None without matplotlib or without measurements."""
    if not any(any(curve.internalized) for curve in comparison.curves):
        return None
    return save(path, lambda figure: plot(figure, comparison), SIZE)


def plot(figure: Any, comparison: Comparison) -> None:
    """Into an empty figure: success without and with the pool above, their difference and the behaviour below."""
    panels = figure.subplot_mosaic([[0, 0, 0, 1, 1, 1], [2, 2, 3, 3, 4, 4]], height_ratios=(1.7, 1))
    count = len(comparison.curves)
    for number, curve in enumerate(comparison.curves):
        look = _look(number, curve, comparison)
        shift = min(0.04, 0.3 / count) * (number - (count - 1) / 2)  # bars side by side do not hide each other
        for place, intervals in enumerate((curve.internalized, curve.in_context, curve.context_gains)):
            _bars(panels[place], intervals, look, shift)
        _line(panels[3], [None if rate is None else 100 * rate for rate in curve.premature], look)
        _line(panels[4], curve.turns, look)
    longest = max((curve.last for curve in comparison.curves), default=0)
    for place, title in enumerate(TITLES):
        _dress(panels[place], title, longest)
    for place in (0, 1, 3):
        panels[place].set(ylim=(0, 100), yticks=range(0, 101, 20))
    low, high = panels[2].get_ylim()
    panels[2].set_ylim(min(low, -10), max(high, 10))
    panels[2].axhline(0, color=INK, linewidth=1, zorder=1)
    panels[4].set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False, handlelength=4.5)


def _look(number: int, curve: Curve, comparison: Comparison) -> dict[str, Any]:
    """Colour, dashes and marker all tell a cell from the others; the reference is the heavy black line below them."""
    name = one_line(curve.cell, 160)
    if curve.cell == comparison.reference:
        own = {"color": "black", "linestyle": "solid", "linewidth": 2.8, "zorder": 2}
        name = f"{name} (reference)"
    else:
        dashes, colour = DASHES[number % len(DASHES)], COLOURS[number % len(COLOURS)]
        own = {"color": colour, "linestyle": dashes, "linewidth": 1.4, "zorder": 3}
    label = textwrap.fill(name, 52).replace("$", r"\$")  # "$" would open a formula
    return {**own, "marker": MARKERS[number % len(MARKERS)], "markersize": 4.5, "label": label}


def _dress(axes: Any, title: str, longest: int) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, fontweight="bold", color=INK)
    axes.set_xlim(-0.3, longest + 0.3)
    axes.set_xticks(range(0, longest + 1, max(1, longest // 6)))
    axes.set_xlabel("iteration (0: the starter)", fontsize=8.5, color=INK)
    axes.tick_params(colors=INK, labelsize=8.5, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _line(axes: Any, values: Sequence[float | None], look: dict[str, Any]) -> None:
    known = [(k, value) for k, value in enumerate(values) if value is not None]
    if known:
        axes.plot(*zip(*known, strict=True), clip_on=False, **look)


def _bars(axes: Any, intervals: Sequence[Interval | None], look: dict[str, Any], shift: float) -> None:
    """Means in percent or points, and their intervals."""
    known = [(k, i) for k, i in enumerate(intervals) if i is not None]
    if not known:
        return
    at, heights = [k + shift for k, _ in known], [100 * i.mean for _, i in known]
    errors = [[100 * (i.mean - i.low) for _, i in known], [100 * (i.high - i.mean) for _, i in known]]
    axes.errorbar(at, heights, yerr=errors, elinewidth=look["linewidth"] / 2, clip_on=False, **look)
