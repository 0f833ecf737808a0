"""How often a warning sign fires in a run in which nothing changes, and how often it sees a pool that does harm.

    python -m benchmarks.false_alarms                   24, 40 and 100 tasks, ten iterations, 500 runs each
    python -m benchmarks.false_alarms --tasks 40 --runs 2000
    python -m benchmarks.false_alarms --harm 0.15       the pool costs 15 points of success, from iteration 1 on

Every policy of a simulated run is a starter as that of recipes/ten.toml: each task has its chance of being solved
(drawn once a run, 0.45 in the mean), every episode its chance of a premature answer. An episode has two to four steps;
the few that go wrong are cut off at the step limit, one half repeating themselves, the other invalid. The filter
accepts 0.55 of 40 trajectories, each by itself, and the pool gives nothing. The signs are those that a report shows,
made by the same functions. Counted is the share of runs in which a sign fires at least once, and of iterations in
which it fires. Left out are signs of which a simulation can say nothing: drift of the weights, texts of a pool, which
items are shown, and forgetting (it has the rule of `below_starter`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import click
import numpy as np

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.metrics import SuiteMetrics, by_task, suite_metrics
from internalize.evaluation.signs import Caution, behaviour_cautions, drift_cautions, filter_cautions
from internalize.evaluation.stats import paired_difference
from internalize.records import EvalResult, Mode

ITERATIONS, JUDGED, RESAMPLES = 10, 40, 400
MODES: tuple[Mode, ...] = ("internalized", "in_context")
SOLVED, ACCEPTED = 0.45, 0.55
PREMATURE: dict[Mode, float] = {"internalized": 0.375, "in_context": 0.075}
POOLS: dict[Mode, str | None] = {"internalized": None, "in_context": "p"}
WRONG = 0.06
LIMIT, BAD = 8, 6  # steps of an episode that goes wrong, and those of them that are repeated or invalid
OF_EPISODES = (
    "premature_rise", "truncated_rise", "invalid_rise", "repeated_rise", "turns_growth", "length_growth", "nll_shrink",
)  # fmt: skip
SIGNS = [(sign, mode) for sign in OF_EPISODES for mode in MODES]
SIGNS += [("below_starter", "internalized"), ("pool_hurts", "in_context"), ("pool_hurts_twice", "in_context")]
Key = tuple[str, str]  # sign and mode
ANY: Key = ("any of these", "")


@click.command(help=__doc__)
@click.option("--tasks", "sizes", multiple=True, type=int, default=(24, 40, 100))
@click.option("--runs", default=500)
@click.option("--seed", default=0)
@click.option("--harm", default=0.0, help="Success that the pool costs, absolute, in the mean over tasks.")
def main(sizes: tuple[int, ...], runs: int, seed: int, harm: float) -> None:
    print("| sign | measured | " + " | ".join(f"{n} tasks: runs, iterations" for n in sizes) + " |")
    print("|:--|:--|" + "--:|" * len(sizes))
    counted = [count(n, runs, harm, np.random.default_rng(seed)) for n in sizes]
    for sign, mode in (*SIGNS, ("accepted_fall", ""), ("most_rejected", ""), ANY):
        cells = [
            f"{in_runs[sign, mode] / runs:.1%}, {fired[sign, mode] / (runs * ITERATIONS):.1%}"
            for fired, in_runs in counted
        ]
        print(f"| {sign} | {mode or '-'} | " + " | ".join(cells) + " |")


def count(tasks: int, runs: int, harm: float, random: np.random.Generator) -> tuple[Counter[Key], Counter[Key]]:
    """Iterations, and runs, in which each sign fired."""
    fired, in_runs = Counter[Key](), Counter[Key]()
    for _ in range(runs):
        cautions = list(run(tasks, harm, random))
        found = [(c.sign, c.mode or "") for c in cautions]
        fired.update(found)
        fired[ANY] += len({c.iteration for c in cautions})
        in_runs.update({*found, *([ANY] if found else [])})
    return fired, in_runs


def run(tasks: int, harm: float, random: np.random.Generator) -> Iterator[Caution]:
    """The cautions of one run of policies that are all alike."""
    chances = random.beta(2 * SOLVED, 2 - 2 * SOLVED, tasks)
    hurt = chances * (1 - harm / SOLVED)
    starter, old = results(chances, "internalized", 0, random)
    with_pool, old_pool = results(chances, "in_context", 0, random)
    first = lines(starter, starter, with_pool)
    last, best = first, None
    for k in range(1, ITERATIONS + 1):
        plain, habits = results(chances, "internalized", k, random)
        with_pool, pool_habits = results(hurt, "in_context", k, random)
        now = lines(starter, plain, with_pool)
        for before, line_before, line in zip(first, last, now, strict=True):
            yield from drift_cautions(before, line, last=line_before)
        yield from behaviour_cautions(old, habits, now[0])
        yield from behaviour_cautions(old_pool, pool_habits, now[1])
        accepted = int(random.binomial(JUDGED, ACCEPTED))
        yield from filter_cautions(accepted, JUDGED - accepted, k, best=best)
        best, last = max(best or 0.0, accepted / JUDGED), now


def lines(
    starter: list[EvalResult], plain: list[EvalResult], with_pool: list[EvalResult]
) -> tuple[SuiteMetrics, SuiteMetrics]:
    """As `iteration_metrics` makes them, but for the interval of success and what is retained: no sign reads them."""
    gain = paired_difference(by_task(starter), by_task(plain), RESAMPLES)
    context = paired_difference(by_task(plain), by_task(with_pool), RESAMPLES)
    return (
        suite_metrics(plain, 1).model_copy(update={"gain_over_starter": gain}),
        suite_metrics(with_pool, 1).model_copy(update={"in_context_gain": context}),
    )


def results(chances: np.ndarray, mode: Mode, k: int, random: np.random.Generator) -> tuple[list[EvalResult], Behaviour]:
    """One episode a task."""
    n = len(chances)
    wrong, half = random.random(n) < WRONG, random.random(n) < 0.5
    turns = np.where(wrong, LIMIT, random.integers(2, 5, n))
    drawn = zip(
        random.random(n) < chances, random.random(n) < PREMATURE[mode], wrong,
        turns.tolist(), np.where(wrong & half, BAD, 0).tolist(), np.exp(0.3 * random.normal(size=n)), strict=True,
    )  # fmt: skip
    found = [
        EvalResult(
            suite="dev", mode=mode, iteration=k, checkpoint=f"c{k}", pool_version=POOLS[mode], task_id=str(task),
            success=float(won), premature=bool(early), truncated=bool(cut), turns=steps, action_tokens=10 * steps,
            invalid=invalid, nll=0.1 * float(noise),
        )
        for task, (won, early, cut, steps, invalid, noise) in enumerate(drawn)
    ]  # fmt: skip
    return found, Behaviour(episodes=n, steps=int(turns.sum()), repeated=BAD * int((wrong & ~half).sum()))


if __name__ == "__main__":
    main()
