"""study.md and study.png: what a study asked, its cells over the iterations, and how sure the differences are.

Left out: single runs (each has its own report). What must not change: names of cells go through `markdown_text`, a
figure draws every cell on one scale from 0 to 100 with its interval, and an unfinished study says so first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from internalize.store import write_atomic

from .comparison import (
    CELL_HEAD,
    VERSUS_HEAD,
    Comparison,
    Curve,
    cell_cost_rows,
    cell_rows,
    iteration_rows,
    versus_rows,
)
from .costs import CELL_COST_HEAD
from .figure import NOTE, save
from .markdown import named, section, table
from .terminal import plain_text, print_table
from .text import markdown_text, one_line
from .tripwires import LEAD_HEAD, lead_rows, verdict

FILE, FIGURE = "study.md", "study.png"
COLOURS = ("#1d4ed8", "#d97706", "#047857", "#be123c", "#7c3aed", "#0e7490", "#a16207", "#4b5563", "#db2777", "#65a30d")
EXPLAINED = (
    "Means over seeds and tasks of the suite measured at every iteration, with 95 % intervals of a bootstrap over "
    "seeds and tasks. `gain`: last iteration minus starter, no experience in the prompt. `with pool`: what the pool in "
    "the prompt adds after the last iteration. `best`: the highest iteration. `retained`: share of the gain the pool "
    "gave in the prompt that is in the weights, averaged over seeds."
)
COST = (
    "Of a run, averaged over seeds. What cells have in common is in the time of the cell that played it. Memory is the "
    "peak of the process, which may have worked on several cells."
)
COMPARED = (
    "Paired by task and seed, after the last iteration that both have finished (a cell of another length: after its "
    "own), without experience in the prompt (a cell that trains nothing: with its pool). "
    "`won`, `lost`: tasks whose success over the seeds rose and fell. `p`: exact sign test "
    "over tasks, adjusted for the number of cells by Holm's method. `seen from`: the smallest difference that as many "
    "tasks and seeds, spread as these are, show with power 0.8 at the strictest step of Holm's method (0.05 over the "
    "number of comparisons); a smaller one may exist. A cell is called better or worse only if interval and "
    "test agree. With one seed that is a difference of two runs: how much runs of one recipe vary is not in it, and "
    "few seeds measure that badly."
)


def publish(comparison: Comparison, out: Path) -> None:
    """Print the tables and write study.md and, where matplotlib is installed, study.png into `out`."""
    console = Console()
    console.print(plain_text(comparison.question, style="bold"))
    print_table(CELL_HEAD, cell_rows(comparison), console)
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
    return save(path, lambda figure: plot(figure, comparison), (9.6, 7.2))


def plot(figure: Any, comparison: Comparison) -> None:
    """Into an empty figure: success without and with the pool above, how the policy behaves without it below."""
    panels = figure.subplots(2, 2, sharex=True, height_ratios=(2, 1))
    for number, curve in enumerate(comparison.curves):
        colour, shift = COLOURS[number % len(COLOURS)], 0.04 * number
        _line(panels[0][0], curve, curve.internalized, colour, shift)
        _line(panels[0][1], curve, curve.in_context, colour, shift)
        _plain(panels[1][0], [None if p is None else 100 * p for p in curve.premature], colour)
        _plain(panels[1][1], curve.turns, colour)
    titles = ("success without experience, %", "success with the pool, %", "premature answers, %", "turns an episode")
    for axes, title in zip(panels.flat, titles, strict=True):
        _dress(axes, title)
    for axes in panels[0]:
        axes.set_ylim(0, 100)
    for axes in panels[1]:
        axes.set_xlabel("iteration", fontsize=9)
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)


def _plain(axes: Any, values: Sequence[float | None], colour: str) -> None:
    known = [(k, value) for k, value in enumerate(values) if value is not None]
    axes.plot([k for k, _ in known], [v for _, v in known], color=colour, marker="o", markersize=3, linewidth=1.4)


def _line(axes: Any, curve: Curve, intervals: tuple[Any, ...], colour: str, shift: float) -> None:
    """Error bars, shifted a little so that they do not hide each other."""
    known = [(k, i) for k, i in enumerate(intervals) if i is not None]
    if not known:
        return
    errors = [[100 * (i.mean - i.low) for _, i in known], [100 * (i.high - i.mean) for _, i in known]]
    axes.errorbar(
        [k + shift for k, _ in known],
        [100 * i.mean for _, i in known],
        yerr=errors,
        color=colour,
        marker="o",
        markersize=4,
        linewidth=1.6,
        elinewidth=0.8,
        label=one_line(curve.cell, 48).replace("$", r"\$"),
    )
