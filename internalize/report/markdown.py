"""report.md: the sentence, the tables, the pool, a few episodes to read, the cost, and how to do it again.

Left out: anything interactive. What must not change: text of models, environments and recipes goes
through `markdown_text` or `fenced`; the file is replaced whole.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from internalize.records import Experience, Injection, Step, Trajectory
from internalize.runs.store import write_atomic

from . import figure, panels
from .costs import totals
from .growth import changes
from .headline import summary
from .run_report import RunReport
from .samples import Sample, Shown
from .signs import sign_lines
from .tables import (
    COST_HEAD,
    FAMILY_HEAD,
    GATE_HEAD,
    POOL_HEAD,
    REDACTION_HEAD,
    SUITE_HEAD,
    cost_rows,
    family_rows,
    gate_rows,
    iteration_table,
    pool_rows,
    redaction_rows,
    suite_rows,
)
from .text import NOTHING, code_span, count, fenced, markdown_text, policy_name

FILE = "report.md"
LONGEST_POOL = 50  # items listed
LONGEST_DIFF = 100  # items that came or went


def write(report: RunReport) -> Path:
    """Write report.md, and figure.png if matplotlib is there, into the run directory."""
    drawn = figure.write(report)
    path = report.path / FILE
    write_atomic(path, render(report, drawn))
    return path


def render(report: RunReport, drawn: Path | None = None) -> str:
    """The Markdown text; `drawn` is the figure to show, next to report.md."""
    sections = (
        "# Report",
        markdown_text(summary(report), 2000),
        _figure(report, drawn),
        _iterations(report),
        section("Families", table(FAMILY_HEAD, named(family_rows(report)))),
        section("Starter and final policy", table(SUITE_HEAD, named(suite_rows(report)))),
        section("Gate", table(GATE_HEAD, _safe(gate_rows(report)), text_columns=(0, 1, 3, 4))),
        _cautions(report),
        _diagnostics(report),
        section("Growth of the pool", table(POOL_HEAD, pool_rows(report)), _came_and_went(report)),
        _pool(report),
        *(_sample(sample) for sample in report.samples),
        section("Secrets taken out", table(REDACTION_HEAD, _safe(redaction_rows(report)), text_columns=(0, 1, 2))),
        _cost(report),
        _reproduce(report),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _figure(report: RunReport, drawn: Path | None) -> str:
    if drawn is not None:
        return f"![Success with and without the pool, and premature answers, over the iterations]({drawn.name})"
    return figure.NOTE if any(i.internalized for i in report.iterations) else ""


def _iterations(report: RunReport) -> str:
    head, rows = iteration_table(report)
    explained = (
        "Success without experience and with the pool in the prompt, with 95 % bootstrap intervals over tasks. "
        "`retained`: share of what the pool added in the prompt, before training, that was moved into the weights. "
        "`premature`: answers given before gathering any evidence. "
        "`kept`: trajectories accepted for training, of those judged. "
        "`undone`: the gate went back to an earlier policy. Unscored episodes count nowhere. "
        f"Suite: {markdown_text(report.suite)}."
    )
    return section("Iterations", table(head, rows), explained if rows else "")


def _cautions(report: RunReport) -> str:
    return section("Cautions", "\n".join(f"- {markdown_text(line)}" for line in sign_lines(report)))


def _diagnostics(report: RunReport) -> str:
    head, rows = panels.rows(report)
    return section("Diagnostics", table(head, rows, text_columns=(0, 1)))


def _came_and_went(report: RunReport) -> str:
    """The diff of the pool, iteration by iteration; what the last one holds is listed by itself."""
    lines = [
        f"- iteration {change.number}: {sign} {markdown_text(item.text, 300)} {code_span(item.id)}"
        for change in changes(report.iterations, report.entities)
        for sign, items in (("new", change.added), ("gone", change.removed))
        for item in items
    ]
    more = [f"- {len(lines) - LONGEST_DIFF} more changes are in the files edits.jsonl."]
    return "\n".join(lines if len(lines) <= LONGEST_DIFF else [*lines[:LONGEST_DIFF], *more])


def _pool(report: RunReport) -> str:
    latest = next((i for i in reversed(report.iterations) if i.pool is not None), None)
    if latest is None or latest.pool is None:
        return ""
    if not latest.pool:
        return f"## Pool of iteration {latest.number}\n\nThe pool is empty."
    # Items that were counted come first, strongest first.
    items = sorted(latest.pool, key=lambda item: (-item.support * item.lift, item.id))[:LONGEST_POOL]
    rows = [_item_row(item) for item in items]
    more = f"{len(latest.pool) - len(items)} more items are in pool.json." if len(items) < len(latest.pool) else ""
    head = ("item", "support", "lift", "since", "experience")
    listed = table(head, rows, text_columns=(0, 4))
    return section(f"Pool of iteration {latest.number} ({len(latest.pool)} items)", listed, more)


def _item_row(item: Experience) -> tuple[str, ...]:
    support = (count(item.support), f"{item.lift:+.2f}") if item.support else (NOTHING, NOTHING)
    return (code_span(item.id), *support, str(item.iteration), markdown_text(item.text, 600))


def _sample(sample: Sample) -> str:
    asked = sample.episodes[0].trajectory.question
    return "\n\n".join([f"## {sample.title}", fenced(asked, 1200), *(_episode(shown) for shown in sample.episodes)])


def _episode(shown: Shown) -> str:
    trajectory = shown.trajectory
    policy = "another checkpoint" if shown.iteration is None else policy_name(shown.iteration)
    score = "unscored" if trajectory.score is None else f"score {trajectory.score:g}"
    ended = trajectory.termination.replace("_", " ")
    head = f"**{policy.capitalize()}**: {score}, {len(trajectory.steps)} steps, {ended}"
    return f"{head}\n\n{fenced(_script(trajectory), 6000)}"


def _script(trajectory: Trajectory) -> str:
    lines = _experience(trajectory.global_injection)
    for number, step in enumerate(trajectory.steps, start=1):
        lines += _experience(step.injection)
        lines += _turn(number, step)
    return "\n".join(lines)


def _turn(number: int, step: Step) -> list[str]:
    note = "" if step.calls else "   (no valid action)"
    lines = [f"{number}. {_cut(step.text, 400)}{note}"]
    return lines if step.observation is None else [*lines, f"   -> {_cut(step.observation, 400)}"]


def _experience(injection: Injection | None) -> list[str]:
    if injection is None or not injection.item_ids:
        return []
    return [
        f"   [experience {', '.join(injection.item_ids)}, chosen by {injection.served_by}]",
        f"   [{_cut(injection.text, 800)}]",
    ]


def _cut(text: str, limit: int) -> str:
    short = text if len(text) <= limit else f"{text[:limit].rstrip()} [...]"
    return short.replace("\n", "\n      ")


def _cost(report: RunReport) -> str:
    rows = cost_rows(report)
    return section("Cost", table(COST_HEAD, rows), totals(report) if rows or report.results else "")


def _reproduce(report: RunReport) -> str:
    info = report.info
    versions = ", ".join(f"{markdown_text(name)} {markdown_text(version)}" for name, version in info.versions.items())
    facts = f"Config digest {code_span(info.digest)}, seed {info.seed}. Versions: {versions}."
    recipe = fenced(json.dumps(info.config, indent=2, ensure_ascii=False), 20_000)
    how = "The same config, seed and versions on the same machine give the same run. The config, also in run.json:"
    return section("How to reproduce", facts, how, recipe)


def section(title: str, *parts: str) -> str:
    """A section of its non-empty parts; no parts, no section."""
    filled = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *filled]) if filled else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: Sequence[int] = (0,)) -> str:
    """Cells are Markdown already."""
    if not rows:
        return ""
    rule = "|".join(":--" if column in text_columns else "--:" for column in range(len(head)))
    return "\n".join([f"| {' | '.join(head)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows)])


def _safe(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return [tuple(markdown_text(cell) for cell in row) for row in rows]


def named(rows: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Rows of numbers whose first cell, a name out of the run, is made safe."""
    return [(markdown_text(name), *numbers) for name, *numbers in rows]
