"""The page of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics
from internalize.experience.redact import RedactionCount
from internalize.records import Experience

from . import figures, panels
from .costs import KINDS, Costs
from .headline import summary
from .page import Code, Column, Episodes, Item, Items, Page, Part, Picture, Section, Table, Text
from .run_report import Change, IterationReport, RunReport, changes
from .signs import WHERE, diagnose, ranges, signs_of, verdict
from .text import NOTHING, count, duration, percent, points, policy_name, ratio, share

LEGEND = "Success with and without the pool, and premature answers, over the iterations"
COLOURS = (
    "Blue: without experience in the prompt. Amber, dashed: with the pool. Grey, dotted: with the pool before it is "
    "learnt. Iteration 0 is the starter. Bands are 95 % bootstrap intervals over tasks."
)
ITERATIONS = (
    "Success without experience and with the pool in the prompt, with 95 % bootstrap intervals over tasks. retained: "
    "share of what the pool added in the prompt, before training, that was moved into the weights. premature: answers "
    "given before gathering any evidence. kept: trajectories accepted for training, of those judged. undone: the gate "
    "went back to an earlier policy. Unscored episodes count nowhere."
)
SIGNS = (
    "● fired after this iteration. The thresholds are in the reference; several signs together, iteration after "
    "iteration, mean more than one."
)
GATE = (
    "Success without experience, candidate minus rival, on the same tasks. A candidate is not kept when interval and "
    "exact test both say it is worse."
)
REDACTED = "Removed before text reached an endpoint, the pool or training; the files of the run keep what happened."
REPRODUCE = "The same config, seed and versions on the same machine give the same run. The config is also in run.json."
LONGEST_POOL = 50  # items listed
SuiteLines = tuple[str, SuiteMetrics | None, SuiteMetrics, SuiteMetrics | None]  # starter, final, with the pool


def run_page(report: RunReport) -> Page:
    """Everything that is known of a run."""
    changed = changes(report.iterations, report.entities)
    total = Costs.total(i.costs for i in report.iterations)
    versions = ", ".join(f"{name} {version}" for name, version in report.info.versions.items())
    facts = f"Config digest {report.info.digest}, seed {report.info.seed}. Versions: {versions}. {REPRODUCE}"
    recipe = json.dumps(report.info.config, indent=2, ensure_ascii=False)
    return Page(
        "Report: did it learn from its own experience?",
        Section("", Text(summary(report), "lead", place="everywhere"), *_pictures(report)),
        Section("Iterations", iterations_table(report)),
        Section("Warning signs", *_signs(report)),
        Section("Gate", _gate(report)),
        Section("Diagnostics", panels.table(report)),
        Section("Starter and final policy", suites_table(report)),
        Section("Families", _families(report)),
        Section("Growth of the pool", _growth(changed), *map(_came_and_went, changed)),
        _pool(report),
        *(
            Section(s.title, Episodes(s.episodes[0].trajectory.question, tuple(shown.column for shown in s.episodes)))
            for s in report.samples
        ),
        Section("Secrets taken out", _redactions(report)),
        Section("Cost", _costs(report), Text(total.words if report.results or total.sampled else "", "soft")),
        Section("How to reproduce", Text(facts, "soft"), Code(recipe, "The resolved recipe")),
    )


def _pictures(report: RunReport) -> list[Part]:
    if not any(i.internalized for i in report.iterations):
        return []
    curves = panels.panels(report) if report.finished else []
    large = Picture(lambda figure: figures.plot_run(figure, report), figures.RUN_SIZE, LEGEND, "figure.png")
    size = figures.panels_size(len(curves))
    small = Picture(lambda figure: figures.plot_panels(figure, curves, report.iterations), size, COLOURS)
    return [large, *([small] if curves else [])]


def _success(line: SuiteMetrics | None) -> str:
    return percent(line.success if line else None)


def iterations_table(report: RunReport) -> Table:
    """The main suite after every iteration; "unscored" only if something is."""
    columns: dict[str, Callable[[IterationReport], str]] = {
        "policy": lambda i: i.name,
        "success %": lambda i: _success(i.internalized),
        "with pool %": lambda i: _success(i.in_context),
        "retained %": lambda i: ratio(i.internalized.retained if i.internalized else None),
        "premature": lambda i: _premature(i.internalized),
        "pool": lambda i: count(None if i.pool is None else len(i.pool)),
        "kept": _kept,
    }
    if any(_unscored(i) for i in report.iterations):
        columns["unscored"] = lambda i: count(_unscored(i))
    note = f"{ITERATIONS} Suite: {report.suite}."
    return Table.of(report.iterations, columns, text=("policy",), note=note, place="everywhere")


def _premature(line: SuiteMetrics | None) -> str:
    return share(line.premature_rate if line and line.results else None)


def _unscored(iteration: IterationReport) -> int | None:
    lines = [line for line in (iteration.internalized, iteration.in_context) if line]
    return sum(line.unscored for line in lines) if lines else None


def _kept(iteration: IterationReport) -> str:
    """Accepted trajectories of all that were judged."""
    training = iteration.training
    if training is None:
        return NOTHING
    judged = "" if training.rejected is None else f"/{count(training.accepted + training.rejected)}"
    return f"{count(training.accepted)}{judged}"


def _signs(report: RunReport) -> list[Part]:
    found = signs_of(report)
    if not found:
        return []
    numbers = [i.number for i in report.iterations if i.number]
    columns = (Column("sign", "text"), Column("what it said first", "text"), Column("measured", "text"))
    rows = ((s.name, s.message, WHERE[s.mode], *("●" if k in s.iterations else "·" for k in numbers)) for s in found)
    where = (f" ({WHERE[s.mode]})" if s.mode else "" for s in found)
    lines = (f"iteration {ranges(s.iterations)}{w}: {s.message}" for s, w in zip(found, where, strict=True))
    return [
        Text(verdict(diagnose(report)), "soft"),
        Table((*columns, *(Column(str(k)) for k in numbers)), tuple(rows), SIGNS),
        Items(tuple(map(Item, lines)), place="terminal"),
    ]


def _gate(report: RunReport) -> Table | None:
    """Each candidate; nothing if the gate's rule is to keep every one."""
    if not report.gated:
        return None
    columns: dict[str, Callable[[tuple[str, Decision]], str]] = {
        "candidate": lambda pair: pair[0],
        "compared with": lambda pair: NOTHING if pair[1].rival is None else policy_name(pair[1].rival),
        "difference, points": lambda pair: points(pair[1].interval),
        "decision": lambda pair: "kept" if pair[1].promote else "not kept",
        "why": lambda pair: pair[1].reason,
    }
    candidates = [pair for i in report.iterations if i.decision for pair in _candidates(i.number, i.decision)]
    return Table.of(candidates, columns, text=("candidate", "compared with", "decision", "why"), note=GATE)


def _candidates(k: int, decision: Decision) -> list[tuple[str, Decision]]:
    return [(str(k), decision.first), (f"{k}, milder", decision)] if decision.first else [(str(k), decision)]


def suites_table(report: RunReport) -> Table:
    """Each suite that the final policy was measured on."""
    final = report.final.number if report.final else 0
    suites = dict.fromkeys(line.suite for line in report.metrics if final and line.iteration == final)
    lines = [
        (suite, report.line(suite, "internalized", 0), plain, report.line(suite, "in_context", final))
        for suite in suites
        if (plain := report.line(suite, "internalized", final))
    ]
    columns: dict[str, Callable[[SuiteLines], str]] = {
        "suite": lambda line: line[0],
        "starter %": lambda line: _success(line[1]),
        "final %": lambda line: _success(line[2]),
        "difference, points": lambda line: points(line[2].gain_over_starter),
        "with pool %": lambda line: _success(line[3]),
        "n": lambda line: count(line[2].gain_over_starter.n if line[2].gain_over_starter else None),
    }
    return Table.of(lines, columns, text=("suite",), place="everywhere")


def _families(report: RunReport) -> Table:
    """Each family of the main suite; none if tasks have no families."""
    final = report.final.number if report.final else 0
    lines = (
        report.line(report.suite, "internalized", 0),
        report.line(report.suite, "internalized", final) if final else None,
        report.line(report.suite, "in_context", final),
    )
    known = [line.families if line else {} for line in lines]
    families = {family: [one.get(family) for one in known] for family in sorted({f for one in known for f in one})}
    columns: dict[str, Callable[[str], str]] = {
        "family": lambda family: family,
        "starter %": lambda family: percent(families[family][0]),
        "final %": lambda family: percent(families[family][1]),
        "with pool %": lambda family: percent(families[family][2]),
        "n": lambda family: count(max(interval.n for interval in families[family] if interval)),
    }
    return Table.of(families, columns, text=("family",), place="everywhere")


def _growth(changed: Iterable[Change]) -> Table:
    columns: dict[str, Callable[[Change], str]] = {
        "iteration": lambda change: str(change.number),
        "items": lambda change: count(change.health.items),
        "new": lambda change: count(len(change.added)),
        "gone": lambda change: count(len(change.removed)),
        "state a strategy": lambda change: share(change.health.strategy_share if change.health.items else None),
        "hold details of tasks": lambda change: share(change.health.leak_share if change.health.items else None),
    }
    return Table.of(changed, columns)


def _came_and_went(change: Change) -> Items:
    added = [Item(item.text, "+", f"{item.id}{_backing(item)}") for item in change.added]
    return Items((*added, *(Item(item.text, "-", item.id) for item in change.removed)), f"Iteration {change.number}")


def _backing(item: Experience) -> str:
    return f" support {item.support} lift {item.lift:+.2f}" if item.support else ""


def _pool(report: RunReport) -> Section:
    latest = next((i for i in reversed(report.iterations) if i.pool is not None), None)
    if latest is None or latest.pool is None:
        return Section("")
    if not latest.pool:
        return Section(f"Pool of iteration {latest.number}", Text("The pool is empty."))
    # Items that were counted come first, strongest first.
    items = sorted(latest.pool, key=lambda item: (-item.support * item.lift, item.id))[:LONGEST_POOL]
    columns: dict[str, Callable[[Experience], str]] = {
        "item": lambda item: item.id,
        "support": lambda item: count(item.support or None),
        "lift": lambda item: f"{item.lift:+.2f}" if item.support else NOTHING,
        "since": lambda item: str(item.iteration),
        "experience": lambda item: item.text,
    }
    left = len(latest.pool) - len(items)
    note = f"{left} more items are in pool.json." if left else ""
    listed = Table.of(items, columns, text=("experience",), code=("item",), note=note)
    return Section(f"Pool of iteration {latest.number} ({len(latest.pool)} items)", listed)


def _redactions(report: RunReport) -> Table:
    found = [(i.number, stage, one) for i in report.iterations for stage, one in i.redactions.stages.items()]
    columns: dict[str, Callable[[tuple[int, str, RedactionCount]], str]] = {
        "iteration": lambda row: str(row[0]),
        "stage": lambda row: row[1],
        "removed": lambda row: ", ".join(f"{n} {kind}" for kind, n in row[2].removed.items()),
        "trajectories not trained on": lambda row: count(row[2].dropped),
    }
    return Table.of(found, columns, text=("iteration", "stage", "removed"), note=REDACTED)


def _costs(report: RunReport) -> Table:
    """Each iteration; episodes and tokens sampled are those learnt from."""
    columns: dict[str, Callable[[IterationReport], str]] = {
        "iteration": lambda i: i.name,
        "episodes": lambda i: i.costs.episodes_words,
        "sampled tokens": lambda i: count(i.costs.sampled),
        "trained tokens": lambda i: count(i.costs.trained if i.training or i.milder else None),
        **{kind: _time(kind) for kind in KINDS},
        "peak memory": lambda i: i.costs.peak,
    }
    found = [i for i in report.iterations if i.costs.episodes or i.training or i.costs.seconds]
    return Table.of(found, columns, text=("iteration",))


def _time(kind: str) -> Callable[[IterationReport], str]:
    return lambda iteration: duration(iteration.costs.seconds.get(kind))
