"""Rows of the report's tables as text cells, the same for the terminal and for Markdown.

Left out: layout and escaping; suite and family names are untrusted like any text of a run.
"""

from __future__ import annotations

from internalize.metrics import SuiteMetrics

from .data import IterationReport, RunReport
from .text import NOTHING, count, duration, percent, points, policy_name, share

ITERATION_HEAD = (
    "policy",
    "success",
    "with pool",
    "retained",
    "premature",
    "turns",
    "unscored",
    "pool",
    "accepted / rejected",
)
SUITE_HEAD = ("suite", "starter", "final", "paired difference", "final with pool", "n")
FAMILY_HEAD = ("family", "starter", "final", "final with pool", "n")
COST_HEAD = ("iteration", "episodes", "sampled tokens", "trained tokens", "training time", "first loss", "last loss")


def iteration_row(iteration: IterationReport) -> tuple[str, ...]:
    """One row under ITERATION_HEAD; the numbers are of the main suite."""
    plain, with_pool, training = iteration.internalized, iteration.in_context, iteration.training
    rolled_back = iteration.decision is not None and not iteration.decision.promote
    return (
        policy_name(iteration.number) + (" (rolled back)" if rolled_back else ""),
        percent(plain.success if plain else None),
        percent(with_pool.success if with_pool else None),
        share(plain.retained if plain else None),
        share(plain.premature_rate if plain and plain.results else None),
        f"{plain.turns:.1f}" if plain and plain.results else NOTHING,
        count(plain.unscored if plain else None),
        count(len(iteration.pool)) if iteration.pool is not None else NOTHING,
        f"{count(training.accepted)} / {count(training.rejected)}" if training else NOTHING,
    )


def suite_rows(report: RunReport) -> list[tuple[str, ...]]:
    """One row under SUITE_HEAD for each suite that the final policy was measured on."""
    final = report.final
    if final is None:
        return []
    suites = dict.fromkeys(line.suite for line in report.metrics if line.iteration == final.number)
    return [_suite_row(report, suite, final.number) for suite in suites]


def _suite_row(report: RunReport, suite: str, final: int) -> tuple[str, ...]:
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


def family_rows(report: RunReport) -> list[tuple[str, ...]]:
    """One row under FAMILY_HEAD for each family of the main suite; none if tasks have no families."""
    final = report.final.number if report.final else 0
    lines = (
        report.line(report.suite, "internalized", 0),
        report.line(report.suite, "internalized", final) if final else None,
        report.line(report.suite, "in_context", final),
    )
    families = sorted({family for line in lines if line for family in line.families})
    return [_family_row(family, lines) for family in families]


def _family_row(family: str, lines: tuple[SuiteMetrics | None, ...]) -> tuple[str, ...]:
    intervals = [line.families.get(family) if line else None for line in lines]
    tasks = max((interval.n for interval in intervals if interval), default=0)
    return (family, *(percent(interval) for interval in intervals), count(tasks))


def cost_row(iteration: IterationReport) -> tuple[str, ...]:
    """One row under COST_HEAD: rollouts and teacher episodes together, evaluation episodes not counted."""
    episodes = sum(sampled.episodes for sampled in iteration.sampled)
    unscored = sum(sampled.unscored for sampled in iteration.sampled)
    training = iteration.training
    return (
        str(iteration.number),
        count(episodes) + (f" ({count(unscored)} unscored)" if unscored else ""),
        count(sum(sampled.action_tokens for sampled in iteration.sampled)),
        count(training.action_tokens if training else None),
        duration(training.seconds if training else None),
        _loss(training.first_loss if training else None),
        _loss(training.last_loss if training else None),
    )


def _loss(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
