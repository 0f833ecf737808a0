"""study.html: one self-contained page of a study, its figure included, with a way to the page of every run.

Left out: what single runs hold (each has its own page). What must not change: the page loads nothing from anywhere,
and names of cells pass through `plain`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from internalize.report.comparison import (
    CELL_HEAD,
    VERSUS_HEAD,
    Comparison,
    Versus,
    cell_cost_rows,
    cell_rows,
    iteration_rows,
    members,
    versus_rows,
)
from internalize.runs.store import write_atomic
from internalize.stages.study import Member

from . import html, study_page
from .costs import CELL_COST_HEAD
from .signs import LEAD_HEAD, lead_rows, verdict
from .text import points

FILE = "study.html"


def write(comparison: Comparison, out: Path) -> Path | None:
    """Write study.html into the folder of the study; None without jinja2."""
    text = render(comparison, out, members(out))
    if text is None:
        return None
    write_atomic(out / FILE, text)
    return out / FILE


def render(comparison: Comparison, out: Path, runs: Sequence[Member]) -> str | None:
    """The page as text; None without jinja2."""
    measured = any(any(curve.internalized) for curve in comparison.curves)
    return html.filled(
        "study.html",
        comparison=comparison,
        findings=findings(comparison),
        unfinished=study_page.unfinished(comparison),
        figure=html.svg(lambda fig: study_page.plot(fig, comparison), study_page.SIZE) if measured else "",
        cells=(CELL_HEAD, cell_rows(comparison)),
        versus=(VERSUS_HEAD, versus_rows(comparison)),
        iterations=iteration_rows(comparison),
        costs=(CELL_COST_HEAD, cell_cost_rows(comparison)),
        cost=study_page.COST,
        explained=study_page.EXPLAINED.replace("`", ""),
        compared=study_page.COMPARED.replace("`", ""),
        verdicts=[verdict(one) for one in comparison.diagnoses if one.collapse],
        leads=(LEAD_HEAD, lead_rows(comparison.diagnoses)),
        runs=[(f"{m.cell}, seed {m.seed}", _page(out, m.folder)) for m in runs],
    )


def findings(comparison: Comparison) -> list[str]:
    """What may be said of each cell against the reference, clear differences first."""
    told = [one for one in comparison.versus if one.verdict != "not told apart"]
    same = [one.cell for one in comparison.versus if one.verdict == "not told apart"]
    lines = [_finding(one, comparison.reference) for one in told]
    if told and all(curve.seeds == 1 for curve in comparison.curves):
        lines.append("One seed: these are differences of single runs; how much runs of one recipe vary is not known.")
    return [*lines, f"Not told apart from {comparison.reference}: {'; '.join(same)}."] if same else lines


def _finding(one: Versus, reference: str) -> str:
    return f"{one.cell} is {one.verdict} than {reference}: {points(one.change)} points, {_chance(one.p)}."


def _chance(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def _page(out: Path, folder: str) -> str:
    """Where the page of a run is, from the study's; "" if there is none."""
    return quote(f"{folder}/{html.FILE}") if (out / folder / html.FILE).exists() else ""
