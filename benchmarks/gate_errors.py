"""How often the gate rolls back a policy that is no worse, and how often it catches one that is.

    python -m benchmarks.gate_errors
    python -m benchmarks.gate_errors --tasks 40 --runs 2000 --loss 0.2
    python -m benchmarks.gate_errors --most 400

Policies are simulated as in benchmarks/false_alarms.py, and the decision is the gate's own, against the best checkpoint
kept so far, in ten iterations. False roll-back: a run in which every candidate is the starter, and at least one of them
is rolled back. Caught: one candidate whose true success is lower by `--loss`, compared once. Further tasks: what
`confirm` plays of a candidate that is no worse, and of the worse one (each twice, but for a rival it has played).
"""

from __future__ import annotations

from typing import NamedTuple

import click
import numpy as np

from benchmarks.false_alarms import ITERATIONS, RESAMPLES, SOLVED, results
from internalize.evaluation.gate import Rule, decide, worse
from internalize.evaluation.metrics import by_task
from internalize.evaluation.stats import won_and_lost
from internalize.records import EvalResult

ERROR = 0.05  # the default of gate.error


class Policy(NamedTuple):
    """One checkpoint: its results on the suite, and on further tasks."""

    suite: list[EvalResult]
    further: list[EvalResult]


class Gate:
    """One rule of the gate; counts the further tasks that it plays of candidates."""

    def __init__(self, rule: Rule, tasks: int, most: int, random: np.random.Generator) -> None:
        self.rule: Rule = rule
        self.tasks, self.most, self.random, self.played, self.asked = tasks, most, random, 0, 0

    def chances(self) -> np.ndarray:
        """Each task's chance of being solved by the starter, the further ones last."""
        return self.random.beta(2 * SOLVED, 2 - 2 * SOLVED, self.tasks + self.most)

    def play(self, solved: np.ndarray) -> Policy:
        """A policy with such chances."""
        found = results(solved, "internalized", 0, self.random)[0]
        return Policy(found[: self.tasks], found[self.tasks :])

    def rolls_back(self, rival: Policy, candidate: Policy) -> bool:
        """Whether the gate rejects the candidate."""
        self.asked += 1
        rejects = not decide(rival.suite, candidate.suite, self.rule, RESAMPLES).promote
        if self.rule != "confirm" or not rejects:
            return rejects
        known = None
        for end in range(self.tasks, self.most + self.tasks, self.tasks):
            sides = (by_task(policy.further[:end]) for policy in (rival, candidate))
            self.played += min(self.tasks, self.most + self.tasks - end)
            known = worse(*won_and_lost(*sides), ERROR / ITERATIONS)
            if known is not None:
                break
        return known is True

    def errs(self) -> bool:
        """Whether a run in which nothing changes has a roll-back."""
        solved = self.chances()
        best = self.play(solved)
        for _ in range(ITERATIONS):
            candidate = self.play(solved)
            if self.rolls_back(best, candidate):
                return True
            best = max(candidate, best, key=won)  # of equals the later one
        return False

    def catches(self, loss: float) -> bool:
        """Whether a candidate that lost so much is told from the starter."""
        solved = self.chances()
        return self.rolls_back(self.play(solved), self.play(solved * (1 - loss / SOLVED)))


@click.command(help=__doc__)
@click.option("--tasks", "sizes", multiple=True, type=int, default=(40, 100, 300))
@click.option("--runs", default=1000)
@click.option("--seed", default=0)
@click.option("--loss", default=0.1, help="Success that a worse candidate lost, absolute, in the mean over tasks.")
@click.option("--most", default=200, help="gate.most of the rule 'confirm'.")
def main(sizes: tuple[int, ...], runs: int, seed: int, loss: float, most: int) -> None:
    caught = f"a loss of {100 * loss:.0f} points is caught"
    print(f"| rule | tasks | runs with a false roll-back | {caught} | further tasks: no worse | worse |")
    print("|:--|--:|--:|--:|--:|--:|")
    rules: tuple[Rule, ...] = ("no_worse", "confirm")
    for rule in rules:
        for tasks in sizes:
            equal, lower = (Gate(rule, tasks, most, np.random.default_rng(seed)) for _ in range(2))
            rates = [
                sum(equal.errs() for _ in range(runs)) / runs,
                sum(lower.catches(loss) for _ in range(runs)) / runs,
            ]
            each = [gate.played / gate.asked for gate in (equal, lower)]
            print(f"| {rule} | {tasks} | {rates[0]:.1%} | {rates[1]:.1%} | {each[0]:.0f} | {each[1]:.0f} |", flush=True)


def won(policy: Policy) -> float:
    return sum(episode.success or 0.0 for episode in policy.suite)


if __name__ == "__main__":
    main()
