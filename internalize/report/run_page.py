"""The page of a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date

from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics, by_kind
from internalize.records import TrainSummary
from internalize.runs.store import RUN

from . import figures, panels
from .costs import KINDS, Costs
from .headline import summary, verdict_line
from .page import Code, Episodes, Item, Items, Page, Part, Picture, Section, Table, Text
from .run_report import Change, IterationReport, RunReport, changes
from .signs import ADVICE, WHERE, diagnose, ranges, signs_of, verdict
from .text import NOTHING, count, duration, memory, percent, points, policy_name, ratio, share

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
    "● fired after this iteration. below_starter and suite_forgotten are losses; pool_hurts and repeated_rise came "
    "before most collapses that were looked into, and seldom else (the reference says how often)."
)
GATE = (
    "Success without experience, candidate minus rival, on the same tasks. A candidate is not kept when interval and "
    "exact test both say it is worse; under 'confirm' when further tasks do, whose difference is then shown."
)
REDACTED = "Removed before text reached an endpoint, the pool or training; the files of the run keep what happened."
REPRODUCE = "The same config, seed and versions on the same machine give the same run. The config is also in run.json."
LONGEST_POOL = 50  # items listed
REFRESH = 20  # seconds after which a browser reads the page of a run that works again


def run_page(report: RunReport) -> Page:
    """The page with everything known about a run."""
    changed = changes(report.iterations, report.entities)
    total = Costs.total(i.costs for i in report.iterations)
    versions = ", ".join(f"{name} {version}" for name, version in report.info.versions.items())
    facts = f"Config digest {report.info.digest}, seed {report.info.seed}. Versions: {versions}. {REPRODUCE}"
    recipe = json.dumps(report.info.config, indent=2, ensure_ascii=False)
    success, small = _pictures(report)
    return Page(
        report.path.resolve().name,
        Section("", Text(verdict_line(report), "lead"), Text(summary(report), place="everywhere"), success),
        Section("Iterations", iterations_table(report)),
        Section("Starter and final policy", suites_table(report)),
        Section("Warning signs", *_signs(report)),
        Section("Gate", _gate(report)),
        Section("Families", _families(report)),
        Section("Diagnostics", small, panels.table(report), folded=True),
        Section("Growth of the pool", _growth(changed), *map(_came_and_went, changed)),
        _pool(report),
        *(
            Section(s.title, Episodes(s.episodes[0].trajectory.question, tuple(shown.column for shown in s.episodes)))
            for s in report.samples
        ),
        Section("Secrets taken out", _redactions(report)),
        Section("Cost", _costs(report), Text(total.words if report.results or total.sampled else "", "soft")),
        Section("How to reproduce", Text(facts, "soft"), Code(recipe, "The resolved recipe")),
        facts=_facts(report),
        refresh=0 if report.finished >= report.planned else REFRESH,
    )


def _facts(report: RunReport) -> str:
    """What the run is: environment, model, how far, seed, when it began."""
    config = report.info.config
    env, model = config.get("env"), config.get("model")
    name = env.get("name", "") if isinstance(env, dict) else ""
    source = model.get("source", "") if isinstance(model, dict) else ""
    source = "the built-in model" if source == "builtin" else source
    began = date.fromtimestamp((report.path / RUN).stat().st_mtime)
    done = f"{report.finished} of {report.planned} iterations"
    return f"Did it learn from its own experience? {name}, {source}, {done}, seed {report.info.seed}, begun {began}"


def _pictures(report: RunReport) -> tuple[Picture | None, Picture | None]:
    """Success, and every diagnostic in a panel of its own; None where there is nothing to draw."""
    if not any(i.internalized for i in report.iterations):
        return None, None
    curves = panels.panels(report) if report.finished else []
    sizes, narrow = figures.panels_size(len(curves)), figures.panels_size(len(curves), 1)
    return (
        Picture(
            lambda figure: figures.plot_run(figure, report), figures.RUN_SIZE, LEGEND, "figure.png", figures.NARROW_RUN
        ),
        Picture(lambda figure: figures.plot_panels(figure, curves, report.iterations), sizes, COLOURS, narrow=narrow)
        if curves
        else None,
    )


def iterations_table(report: RunReport) -> Table:
    """The main suite after every iteration; "unscored" only if something is."""
    unscored = {i.number: sum(line.unscored for line in _lines(i)) for i in report.iterations}
    rows = [
        {
            "policy": i.name,
            "success %": _success(i.internalized),
            "with pool %": _success(i.in_context),
            "retained %": ratio(i.internalized.retained if i.internalized else None),
            "premature": share(i.internalized.premature_rate if i.internalized and i.internalized.results else None),
            "pool": count(None if i.pool is None else len(i.pool)),
            "kept": _kept(i.training) if i.training else NOTHING,
            **({"unscored": count(unscored[i.number] if _lines(i) else None)} if any(unscored.values()) else {}),
        }
        for i in report.iterations
    ]
    return Table(rows, text=("policy",), note=f"{ITERATIONS} Suite: {report.suite}.", place="everywhere")


def _lines(iteration: IterationReport) -> list[SuiteMetrics]:
    return [line for line in (iteration.internalized, iteration.in_context) if line]


def _success(line: SuiteMetrics | None) -> str:
    return percent(line.success if line else None)


def _kept(training: TrainSummary) -> str:
    """Accepted trajectories of all that were judged."""
    judged = "" if training.rejected is None else f"/{count(training.accepted + training.rejected)}"
    return f"{count(training.accepted)}{judged}"


def _signs(report: RunReport) -> list[Part]:
    found = signs_of(report)
    if not found:
        return []
    numbers = [i.number for i in report.iterations if i.number]
    rows = [
        {
            "sign": sign.name,
            "what it said first": sign.message,
            "what helps": ADVICE[sign.name],
            "measured": WHERE[sign.mode],
            **{str(k): "●" if k in sign.iterations else "·" for k in numbers},
        }
        for sign in found
    ]
    lines = (f"iteration {ranges(sign.iterations)} ({WHERE[sign.mode]}): {sign.message}" for sign in found)
    return [
        Text(verdict(diagnose(report)), "soft"),
        Table(rows, text=("sign", "what it said first", "what helps", "measured"), note=SIGNS),
        Items(tuple(map(Item, lines)), place="terminal"),
    ]


def _gate(report: RunReport) -> Table | None:
    """Each candidate; nothing if the gate's rule is to keep every one."""
    if not report.gated:
        return None
    candidates = [pair for i in report.iterations if i.decision for pair in _candidates(i.number, i.decision)]
    rows = [
        {
            "candidate": candidate,
            "compared with": NOTHING if decision.rival is None else policy_name(decision.rival),
            "difference, points": points(decision.interval),
            "decision": "kept" if decision.promote else "not kept",
            "why": decision.reason,
        }
        for candidate, decision in candidates
    ]
    return Table(rows, text=("candidate", "compared with", "decision", "why"), note=GATE)


def _candidates(k: int, decision: Decision) -> list[tuple[str, Decision]]:
    return [(str(k), decision.first), (f"{k}, milder", decision)] if decision.first else [(str(k), decision)]


def suites_table(report: RunReport) -> Table:
    """Each suite that the final policy was measured on."""
    final = report.final.number if report.final else 0
    measured = [line for line in report.metrics if final and line.iteration == final]
    lines = [(suite, report.line(suite, "internalized", final)) for suite in dict.fromkeys(m.suite for m in measured)]
    rows = [
        {
            "suite": suite,
            "starter %": _success(report.line(suite, "internalized", 0)),
            "final %": _success(line),
            "difference, points": points(line.gain_over_starter if line else None),
            "with pool %": _success(report.line(suite, "in_context", final)),
            "n": count(line.gain_over_starter.n if line and line.gain_over_starter else None),
        }
        for suite, line in lines
    ]
    return Table(rows, text=("suite",), place="everywhere")


def _families(report: RunReport) -> Table:
    """Each family of the main suite; none if tasks have no families."""
    final = report.final.number if report.final else 0
    starter = report.line(report.suite, "internalized", 0)
    plain = report.line(report.suite, "internalized", final) if final else None
    lines = {"starter %": starter, "final %": plain, "with pool %": report.line(report.suite, "in_context", final)}
    known = {name: line.families if line else {} for name, line in lines.items()}
    rows = [
        {
            "family": family,
            **{name: percent(found.get(family)) for name, found in known.items()},
            "n": count(max(found[family].n for found in known.values() if family in found)),
        }
        for family in sorted({family for found in known.values() for family in found})
    ]
    return Table(rows, text=("family",), place="everywhere")


def _growth(changed: Sequence[Change]) -> Table:
    rows = [
        {
            "iteration": str(number),
            "items": count(health.items),
            "new": count(len(added)),
            "gone": count(len(removed)),
            "state a strategy": share(health.strategy_share if health.items else None),
            "hold details of tasks": share(health.leak_share if health.items else None),
        }
        for number, added, removed, health in changed
    ]
    return Table(rows)


def _came_and_went(change: Change) -> Items:
    backing = {i.id: f" support {i.support} lift {i.lift:+.2f}" if i.support else "" for i in change.added}
    added = [Item(item.text, "+", f"{item.id}{backing[item.id]}") for item in change.added]
    return Items((*added, *(Item(item.text, "-", item.id) for item in change.removed)), f"Iteration {change.number}")


def _pool(report: RunReport) -> Section:
    latest = next((i for i in reversed(report.iterations) if i.pool is not None), None)
    if latest is None or latest.pool is None:
        return Section("")
    if not latest.pool:
        return Section(f"Pool of iteration {latest.number}", Text("The pool is empty."))
    # Items that were counted come first, strongest first.
    items = sorted(latest.pool, key=lambda item: (-item.support * item.lift, item.id))
    rows = [
        {
            "item": item.id,
            "support": count(item.support or None),
            "lift": f"{item.lift:+.2f}" if item.support else NOTHING,
            "since": str(item.iteration),
            "experience": item.text,
        }
        for item in items[:LONGEST_POOL]
    ]
    note = f"{len(items) - len(rows)} more items are in pool.json." if len(items) > len(rows) else ""
    listed = Table(rows, text=("experience",), code=("item",), note=note)
    return Section(f"Pool of iteration {latest.number} ({len(items)} items)", listed)


def _redactions(report: RunReport) -> Table:
    rows = [
        {
            "iteration": str(i.number),
            "stage": stage,
            "removed": ", ".join(f"{n} {kind}" for kind, n in found.removed.items()),
            "trajectories not trained on": count(found.dropped),
        }
        for i in report.iterations
        for stage, found in i.redactions.stages.items()
    ]
    return Table(rows, text=("iteration", "stage", "removed"), note=REDACTED)


def _costs(report: RunReport) -> Table:
    """Each iteration; episodes and tokens sampled are those learnt from. Failures are counted if there are any."""
    failed = any(i.costs.failures for i in report.iterations)
    rows = [
        {
            "iteration": i.name,
            "episodes": count(costs.episodes) + (f" ({count(costs.unscored)} unscored)" if costs.unscored else ""),
            "sampled tokens": count(costs.sampled),
            "trained tokens": count(costs.trained if i.training or i.milder else None),
            **{kind: duration(costs.seconds.get(kind)) for kind in KINDS},
            "peak memory": memory(costs.memory)
            + (f", device {memory(costs.device_memory)}" if costs.device_memory else ""),
            **({"failed episodes": by_kind(costs.failures) or NOTHING} if failed else {}),
        }
        for i in report.iterations
        if (costs := i.costs).episodes or i.training or costs.seconds
    ]
    return Table(rows, text=("iteration",))
