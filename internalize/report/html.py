"""report.html: one self-contained page of a run, figures included, for a browser without a network.

Built with jinja2, which escapes every value that is not marked safe; only our own SVG is. Left out: scripts. What must
not change: the page loads nothing from anywhere, and text of models and environments passes through `plain` too, so
that no control or direction character gets in.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from internalize.records import Step
from internalize.runs.store import write_atomic

from . import figure, panels
from .costs import totals
from .growth import changes
from .headline import summary
from .run_report import RunReport
from .samples import Shown
from .signs import WHERE, diagnose, signs_of, verdict
from .tables import (
    COST_HEAD,
    FAMILY_HEAD,
    GATE_HEAD,
    REDACTION_HEAD,
    SUITE_HEAD,
    cost_rows,
    family_rows,
    gate_rows,
    iteration_table,
    redaction_rows,
    suite_rows,
)
from .text import plain, policy_name

FILE = "report.html"
NOTE = "No page: jinja2 is not installed (pip install 'internalize[plot]')."
TEMPLATES = Path(__file__).parent / "templates"


class Episode(NamedTuple):
    """One column of a sample: who played, how it ended, and what happened."""

    title: str
    outcome: str
    won: bool
    experience: str
    steps: tuple[Step, ...]


def write(report: RunReport) -> Path | None:
    """Write report.html into the run directory; None without jinja2."""
    text = render(report)
    if text is None:
        return None
    path = report.path / FILE
    write_atomic(path, text)
    return path


def render(report: RunReport) -> str | None:
    """The page as text; None without jinja2."""
    return filled(
        "run.html",
        report=report,
        sentence=summary(report),
        success=svg(lambda fig: figure.plot(fig, report), (9.6, 5.2)) if _measured(report) else "",
        signs=_signs(report) if report.finished else "",
        iterations=iteration_table(report),
        suites=(SUITE_HEAD, suite_rows(report)),
        families=(FAMILY_HEAD, family_rows(report)),
        gate=(GATE_HEAD, gate_rows(report)),
        diagnostics=panels.rows(report),
        costs=(COST_HEAD, cost_rows(report)),
        redactions=(REDACTION_HEAD, redaction_rows(report)),
        verdict=verdict(diagnose(report)),
        cautions=[(WHERE[s.mode], s) for s in signs_of(report)],
        numbers=[i.number for i in report.iterations if i.number],
        changes=changes(report.iterations, report.entities),
        samples=[
            (s.title, s.episodes[0].trajectory.question, [_episode(e) for e in s.episodes]) for s in report.samples
        ],
        tokens=totals(report),
        config=json.dumps(report.info.config, indent=2, ensure_ascii=False),
    )


def filled(template: str, **values: Any) -> str | None:
    """A page made of a template in `templates/`, every value escaped; None without jinja2."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - optional
    except ImportError:
        return None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["plain"] = plain
    return environment.get_template(template).render(**values)


def _measured(report: RunReport) -> bool:
    return any(i.internalized for i in report.iterations)


def _episode(shown: Shown) -> Episode:
    trajectory = shown.trajectory
    taught = trajectory.global_injection is not None or any(step.injection for step in trajectory.steps)
    who = "another checkpoint" if shown.iteration is None else policy_name(shown.iteration)
    score = "unscored" if trajectory.score is None else f"score {trajectory.score:g}"
    return Episode(
        title=f"{who}, with experience" if taught else who,
        outcome=f"{score}, {len(trajectory.steps)} steps, {trajectory.termination.replace('_', ' ')}",
        won=trajectory.score == 1.0,
        experience=trajectory.global_injection.text if trajectory.global_injection else "",
        steps=trajectory.steps,
    )


def _signs(report: RunReport) -> str:
    count = len(panels.panels(report))
    return svg(lambda fig: panels.plot(fig, report), panels.size(count)) if count else ""


def svg(plot: Callable[[Any], None], size: tuple[float, float]) -> str:
    """The figure as an SVG element; empty without matplotlib."""
    buffer = io.StringIO()
    if figure.save(buffer, plot, size) is None:
        return ""
    text = buffer.getvalue()
    return text[text.index("<svg") :]
