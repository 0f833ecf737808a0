"""How often the gate rolls back a policy that is no worse, and how often it catches one that is.

    python -m benchmarks.gate_errors
    python -m benchmarks.gate_errors --tasks 40 --runs 2000 --loss 0.2

Policies are simulated as in benchmarks/false_alarms.py, and the decision is the gate's own (`no_worse` against the best
checkpoint kept so far, at most ten iterations). False roll-back: a run in which every candidate is the starter, and at
least one of them is rolled back. Caught: one candidate whose true success is lower by `--loss`, compared once.
"""

from __future__ import annotations

import click
import numpy as np

from benchmarks.false_alarms import ITERATIONS, RESAMPLES, SOLVED, results
from internalize.evaluation.gate import decide
from internalize.records import EvalResult


@click.command(help=__doc__)
@click.option("--tasks", "sizes", multiple=True, type=int, default=(40, 100, 300))
@click.option("--runs", default=1000)
@click.option("--seed", default=0)
@click.option("--loss", default=0.1, help="Success that a worse candidate lost, absolute, in the mean over tasks.")
def main(sizes: tuple[int, ...], runs: int, seed: int, loss: float) -> None:
    print(f"| tasks | runs with a false roll-back | a loss of {100 * loss:.0f} points is caught |\n|--:|--:|--:|")
    for tasks in sizes:
        random = np.random.default_rng(seed)
        false = sum(rolls_back(chances(tasks, random), random) for _ in range(runs)) / runs
        caught = sum(catches(chances(tasks, random), loss, random) for _ in range(runs)) / runs
        print(f"| {tasks} | {false:.1%} | {caught:.1%} |")


def chances(tasks: int, random: np.random.Generator) -> np.ndarray:
    """Each task's chance of being solved by the starter."""
    return random.beta(2 * SOLVED, 2 - 2 * SOLVED, tasks)


def rolls_back(solved: np.ndarray, random: np.random.Generator) -> bool:
    """Whether a run in which nothing changes has a roll-back."""
    best = play(solved, random)
    for _ in range(ITERATIONS):
        candidate = play(solved, random)
        if worse(best, candidate):
            return True
        best = max(candidate, best, key=won)  # of equals the later one
    return False


def catches(solved: np.ndarray, loss: float, random: np.random.Generator) -> bool:
    """Whether a candidate that lost so much is told from the starter."""
    return worse(play(solved, random), play(solved * (1 - loss / SOLVED), random))


def worse(before: list[EvalResult], after: list[EvalResult]) -> bool:
    return not decide(before, after, "no_worse", RESAMPLES).promote


def play(solved: np.ndarray, random: np.random.Generator) -> list[EvalResult]:
    return results(solved, "internalized", 0, random)[0]


def won(episodes: list[EvalResult]) -> float:
    return sum(episode.success or 0.0 for episode in episodes)


if __name__ == "__main__":
    main()
