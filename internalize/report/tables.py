"""Rows of the report's tables as text cells, the same for the terminal and for Markdown.

Left out: layout and escaping; suite and family names are untrusted like any text of a run.
"""

from __future__ import annotations

from internalize.evaluation.gate import Decision
from internalize.evaluation.metrics import SuiteMetrics
from internalize.records import TrainSummary

from .growth import Change, changes
from .run_report import IterationReport, RunReport
from .spent import KINDS, Spent
from .text import NOTHING, count, duration, memory, percent, points, policy_name, ratio, share

ITERATION_HEAD = (
    "policy",
    "success %",
    "with pool %",
    "retained %",
    "premature",
    "pool",
    "kept",
    "unscored",
)
SUITE_HEAD = ("suite", "starter %", "final %", "difference, points", "with pool %", "n")
FAMILY_HEAD = ("family", "starter %", "final %", "with pool %", "n")
COST_HEAD = ("iteration", "episodes", "sampled tokens", "trained tokens", *KINDS, "peak memory")
GATE_HEAD = ("candidate", "compared with", "difference, points", "decision", "why")
POOL_HEAD = ("iteration", "items", "new", "gone", "state a strategy", "hold details of tasks")
REDACTION_HEAD = ("iteration", "stage", "removed", "trajectories not trained on")
Row = tuple[str, ...]


def iteration_table(report: RunReport) -> tuple[Row, list[Row]]:
    """ITERATION_HEAD and a row an iteration, of the main suite; "unscored" only if something is."""
    rows = [_iteration_row(iteration) for iteration in report.iterations]
    if any(row[-1] not in {"0", NOTHING} for row in rows):
        return ITERATION_HEAD, rows
    return ITERATION_HEAD[:-1], [row[:-1] for row in rows]


def _iteration_row(iteration: IterationReport) -> Row:
    plain, with_pool, training = iteration.internalized, iteration.in_context, iteration.training
    lines = [line for line in (plain, with_pool) if line]
    return (
        _policy(iteration),
        percent(plain.success if plain else None),
        percent(with_pool.success if with_pool else None),
        ratio(plain.retained if plain else None),
        share(plain.premature_rate if plain and plain.results else None),
        count(len(iteration.pool)) if iteration.pool is not None else NOTHING,
        _kept(training) if training else NOTHING,
        count(sum(line.unscored for line in lines) if lines else None),
    )


def _policy(iteration: IterationReport) -> str:
    if iteration.number == 0:
        return "starter"
    rolled_back = iteration.decision is not None and not iteration.decision.promote
    return f"{iteration.number} undone" if rolled_back else str(iteration.number)


def _kept(training: TrainSummary) -> str:
    """Accepted trajectories of all that were judged."""
    if training.rejected is None:
        return count(training.accepted)
    return f"{count(training.accepted)}/{count(training.accepted + training.rejected)}"


def suite_rows(report: RunReport) -> list[Row]:
    """One row under SUITE_HEAD for each suite that the final policy was measured on."""
    final = report.final
    if final is None:
        return []
    suites = dict.fromkeys(line.suite for line in report.metrics if line.iteration == final.number)
    return [_suite_row(report, suite, final.number) for suite in suites]


def _suite_row(report: RunReport, suite: str, final: int) -> Row:
    starter = report.line(suite, "internalized", 0)
    plain, with_pool = report.line(suite, "internalized", final), report.line(suite, "in_context", final)
    change = plain.gain_over_starter if plain else None
    return (
        suite,
        percent(starter.success if starter else None),
        percent(plain.success if plain else None),
        points(change),
        percent(with_pool.success if with_pool else None),
        count(change.n if change else None),
    )


def family_rows(report: RunReport) -> list[Row]:
    """One row under FAMILY_HEAD for each family of the main suite; none if tasks have no families."""
    final = report.final.number if report.final else 0
    lines = (
        report.line(report.suite, "internalized", 0),
        report.line(report.suite, "internalized", final) if final else None,
        report.line(report.suite, "in_context", final),
    )
    families = sorted({family for line in lines if line for family in line.families})
    return [_family_row(family, lines) for family in families]


def _family_row(family: str, lines: tuple[SuiteMetrics | None, ...]) -> Row:
    intervals = [line.families.get(family) if line else None for line in lines]
    tasks = max((interval.n for interval in intervals if interval), default=0)
    return (family, *(percent(interval) for interval in intervals), count(tasks))


def gate_rows(report: RunReport) -> list[Row]:
    """One row under GATE_HEAD for each candidate; none if the gate's rule is to keep every one."""
    rule = report.info.config.get("gate")
    if not isinstance(rule, dict) or rule.get("rule", "always") == "always":
        return []
    return [_gate_row(f"{i.number}{which}", d) for i in report.iterations for which, d in _candidates(i.decision)]


def _candidates(decision: Decision | None) -> list[tuple[str, Decision]]:
    if decision is None:
        return []
    return [("", decision)] if decision.first is None else [("", decision.first), (", milder", decision)]


def _gate_row(candidate: str, decision: Decision) -> Row:
    rival = NOTHING if decision.rival is None else policy_name(decision.rival)
    kept = "kept" if decision.promote else "not kept"
    return (candidate, rival, points(decision.interval), kept, decision.reason)


def redaction_rows(report: RunReport) -> list[Row]:
    """One row under REDACTION_HEAD for each stage whose texts held secrets."""
    return [
        (str(i.number), stage, ", ".join(f"{n} {kind}" for kind, n in found.removed.items()), count(found.dropped))
        for i in report.iterations
        for stage, found in i.redactions.stages.items()
    ]


def pool_rows(report: RunReport) -> list[Row]:
    """One row under POOL_HEAD for each iteration that made a pool."""
    return [_pool_row(change) for change in changes(report.iterations, report.entities)]


def _pool_row(change: Change) -> Row:
    health = change.health
    shares = (health.strategy_share, health.leak_share) if health.items else (None, None)
    numbers = (health.items, len(change.added), len(change.removed))
    return (str(change.number), *(count(number) for number in numbers), *(share(value) for value in shares))


def cost_rows(report: RunReport) -> list[Row]:
    """One row under COST_HEAD for each iteration; episodes and tokens sampled are those learnt from."""
    return [_cost_row(i) for i in report.iterations if i.sampled or i.training or i.spent]


def _cost_row(iteration: IterationReport) -> Row:
    episodes = sum(sampled.episodes for sampled in iteration.sampled)
    unscored = sum(sampled.unscored for sampled in iteration.sampled)
    trained = [t.action_tokens for t in (iteration.training, iteration.milder) if t]
    spent = iteration.spent or Spent()
    return (
        _policy(iteration),
        count(episodes) + (f" ({count(unscored)} unscored)" if unscored else ""),
        count(sum(sampled.action_tokens for sampled in iteration.sampled)),
        count(sum(trained) if trained else None),
        *(duration(spent.seconds.get(kind)) for kind in KINDS),
        memory(spent.memory) + (f", device {memory(spent.device_memory)}" if spent.device_memory else ""),
    )
