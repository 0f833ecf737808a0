"""The whole loop through the public door: roll out, extract, play with the pool, distill, evaluate; K times.

    python recipes/minimal_loop.py recipes/demo.toml runs/minimal [SECTION.KEY=VALUE ...]

`internalize run` does the same with a run directory that survives being killed, a gate, warning signs and a report.
"""

from __future__ import annotations

import sys
from pathlib import Path

import internalize as it


def loop(bench: it.Workbench) -> list[it.SuiteMetrics]:
    """The starter and the policy after each of K iterations, measured without experience in the prompt."""
    config, policy = bench.config, bench.starter
    pool = it.ExperiencePool((), config.extract.cap)
    measured = [it.evaluate(bench, policy)]
    for k in range(1, config.iterations + 1):
        learning, training = bench.training_tasks(k)
        trajectories = it.roll_out(bench, policy, learning, attempts=config.rollout.attempts)
        pool = it.extract(bench, trajectories, pool, policy)
        shown = it.roll_out(bench, policy, training, pool, attempts=config.distill.attempts)
        policy, summary = it.distill(bench, policy, shown)
        measured.append(it.evaluate(bench, policy))

        print(f"iteration {k}: {len(pool.items)} items, {summary.accepted} trajectories learnt, loss "
              f"{summary.first_loss} -> {summary.last_loss}, success {success(measured[-1])}")  # fmt: skip
    return measured


def success(metrics: it.SuiteMetrics) -> str:
    interval = metrics.success
    return "not scored" if interval is None else f"{interval.mean:.0%} [{interval.low:.0%}, {interval.high:.0%}]"


def main(recipe: Path, folder: Path, *changes: str) -> list[it.SuiteMetrics]:
    bench = it.open_workbench(it.load_config(recipe, changes), folder)
    try:
        measured = loop(bench)
    finally:
        bench.close()
    print(f"success {success(measured[0])} -> {success(measured[-1])}; weights in {bench.folder}")
    return measured


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
