"""How often a warning sign fires in a run in which nothing changes.

    python -m benchmarks.false_alarms                   24, 40 and 100 tasks, ten iterations, 200 runs each
    python -m benchmarks.false_alarms --tasks 40 --runs 500

Every policy of a simulated run is the starter: each task has its chance of being solved (drawn once a run, 0.45 in the
mean), every episode its chance of a premature answer (0.1), of being cut off (0.05) and of an invalid action a step
(0.03); a step repeats an earlier one with 0.05, the filter accepts 0.55 of 40 trajectories, and the pool gives nothing.
The signs are those that a report shows, made by the same functions. Counted is the share of runs in which a sign fires
at least once, and of iterations in which it fires. Signs of which a simulation can say nothing (drift of the weights,
texts of a pool, which items are shown) are not in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import click
import numpy as np

from internalize.diagnostics import Caution, drift_cautions, filter_cautions, habit_cautions
from internalize.habits import Habits
from internalize.metrics import Mode, SuiteMetrics, iteration_metrics
from internalize.records import EvalResult

ITERATIONS, JUDGED, RESAMPLES = 10, 40, 300
MODES: tuple[Mode, ...] = ("internalized", "in_context")
PREMATURE, TRUNCATED, INVALID, REPEATED, ACCEPTED = 0.1, 0.05, 0.03, 0.05, 0.55


@click.command(help=__doc__)
@click.option("--tasks", "sizes", multiple=True, type=int, default=(24, 40, 100))
@click.option("--runs", default=200)
@click.option("--seed", default=0)
def main(sizes: tuple[int, ...], runs: int, seed: int) -> None:
    print("| sign | measured | " + " | ".join(f"{n} tasks: runs, iterations" for n in sizes) + " |")
    print("|:--|:--|" + "--:|" * len(sizes))
    counted = [count(n, runs, np.random.default_rng(seed)) for n in sizes]
    for sign, mode in sorted({key for fired, _ in counted for key in fired}):
        cells = [
            f"{in_runs[sign, mode] / runs:.1%}, {fired[sign, mode] / (runs * ITERATIONS):.1%}"
            for fired, in_runs in counted
        ]
        print(f"| {sign} | {mode or '-'} | " + " | ".join(cells) + " |")


Key = tuple[str, str]  # sign and mode


def count(tasks: int, runs: int, random: np.random.Generator) -> tuple[Counter[Key], Counter[Key]]:
    """Iterations, and runs, in which each sign fired."""
    fired, in_runs = Counter[Key](), Counter[Key]()
    for _ in range(runs):
        found = [(c.sign, c.mode or "") for c in run(tasks, random)]
        fired.update(found)
        in_runs.update(set(found))
    return fired, in_runs


def run(tasks: int, random: np.random.Generator) -> Iterator[Caution]:
    """The cautions of one run of policies that are all alike."""
    chances = random.beta(0.9, 1.1, tasks)
    starter = [r for mode in MODES for r in results(chances, mode, 0, random)]
    first = {line.mode: line for line in iteration_metrics(starter, (), RESAMPLES)}
    habits = {mode: habit(tasks, random) for mode in MODES}
    last: dict[Mode, SuiteMetrics] = {}
    best = None
    for k in range(1, ITERATIONS + 1):
        now = [r for mode in MODES for r in results(chances, mode, k, random)]
        lines = {line.mode: line for line in iteration_metrics(now, starter, RESAMPLES) if line.iteration == k}
        for mode, line in lines.items():
            yield from drift_cautions(first[mode], line, last=last.get(mode))
            yield from habit_cautions(habits[mode], habit(tasks, random), line)
        accepted = int(random.binomial(JUDGED, ACCEPTED))
        yield from filter_cautions(accepted, JUDGED - accepted, k, best=best)
        best, last = max(best or 0.0, accepted / JUDGED), lines


def results(chances: np.ndarray, mode: Mode, k: int, random: np.random.Generator) -> list[EvalResult]:
    """One episode a task."""
    won = random.random(len(chances)) < chances
    turns = random.integers(3, 6, len(chances))
    return [
        EvalResult(
            suite="dev", mode=mode, iteration=k, checkpoint=f"c{k}", pool_version="p" if mode == "in_context" else None,
            task_id=str(task), success=float(won[task]), premature=bool(random.random() < PREMATURE),
            turns=int(turns[task]), action_tokens=int(10 * turns[task]), truncated=bool(random.random() < TRUNCATED),
            invalid=int(random.binomial(turns[task], INVALID)), nll=float(0.1 * np.exp(0.3 * random.normal())),
        )
        for task in range(len(chances))
    ]  # fmt: skip


def habit(tasks: int, random: np.random.Generator) -> Habits:
    """Of as many episodes of four steps."""
    return Habits(episodes=tasks, steps=4 * tasks, repeated=int(random.binomial(4 * tasks, REPEATED)))


if __name__ == "__main__":
    main()
