"""How often a warning sign fires in a run in which nothing changes, and how often it sees a pool that does harm.

    python -m benchmarks.false_alarms                   24, 40 and 100 tasks, ten iterations, 500 runs each
    python -m benchmarks.false_alarms --tasks 40 --runs 2000
    python -m benchmarks.false_alarms --harm 0.15       the pool costs 15 points of success, from iteration 1 on

Every policy of a simulated run is a starter as that of recipes/ten.toml: each task has its chance of being solved
(drawn once a run, 0.45 in the mean). An episode has two to four steps; the few that go wrong are cut off at the step
limit, half of them repeating themselves. The pool gives nothing. The signs are those that a report shows, made by the
same functions. `suite_forgotten` is left out: it has the rule of `below_starter`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import click
import numpy as np

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.metrics import by_task, suite_metrics
from internalize.evaluation.signs import Caution, Observed, cautions
from internalize.evaluation.stats import paired_difference
from internalize.records import EvalResult, Mode

ITERATIONS, RESAMPLES = 10, 400
SOLVED = 0.45
POOLS: dict[Mode, str | None] = {"internalized": None, "in_context": "p"}
WRONG, LIMIT, BAD = 0.06, 8, 6  # episodes that go wrong, their steps, and those that are repeated in half of them
SIGNS = (
    ("repeated_rise", "internalized"), ("repeated_rise", "in_context"), ("below_starter", "internalized"),
    ("pool_hurts", "in_context"),
)  # fmt: skip
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
    for sign, mode in (*SIGNS, ANY):
        cells = [
            f"{in_runs[sign, mode] / runs:.1%}, {fired[sign, mode] / (runs * ITERATIONS):.1%}"
            for fired, in_runs in counted
        ]
        print(f"| {sign} | {mode or '-'} | " + " | ".join(cells) + " |")


def count(tasks: int, runs: int, harm: float, random: np.random.Generator) -> tuple[Counter[Key], Counter[Key]]:
    """Iterations, and runs, in which each sign fired."""
    fired, in_runs = Counter[Key](), Counter[Key]()
    for _ in range(runs):
        raised = list(run(tasks, harm, random))
        found = [(c.sign, c.mode) for c in raised]
        fired.update(found)
        fired[ANY] += len({c.iteration for c in raised})
        in_runs.update({*found, *([ANY] if found else [])})
    return fired, in_runs


def run(tasks: int, harm: float, random: np.random.Generator) -> Iterator[Caution]:
    """The cautions of one run of policies that are all alike."""
    chances = random.beta(2 * SOLVED, 2 - 2 * SOLVED, tasks)
    hurt = chances * (1 - harm / SOLVED)
    starter, habits = results(chances, "internalized", 0, random)
    with_pool, pool_habits = results(chances, "in_context", 0, random)
    earlier = [observed(0, starter, starter, with_pool, habits, pool_habits)]
    for k in range(1, ITERATIONS + 1):
        plain, habits = results(chances, "internalized", k, random)
        with_pool, pool_habits = results(hurt, "in_context", k, random)
        now = observed(k, starter, plain, with_pool, habits, pool_habits)
        yield from cautions(earlier, now)


def observed(
    k: int,
    starter: list[EvalResult],
    plain: list[EvalResult],
    with_pool: list[EvalResult],
    habits: Behaviour,
    pool_habits: Behaviour,
) -> Observed:
    """As a report makes it, but for the interval of success and what is retained: no sign reads them."""
    gain = paired_difference(by_task(starter), by_task(plain), RESAMPLES)
    context = paired_difference(by_task(plain), by_task(with_pool), RESAMPLES)
    return Observed(
        number=k,
        internalized=suite_metrics(plain, 1).model_copy(update={"gain_over_starter": gain}),
        in_context=suite_metrics(with_pool, 1).model_copy(update={"in_context_gain": context}),
        behaviour={"internalized": habits, "in_context": pool_habits},
    )


def results(chances: np.ndarray, mode: Mode, k: int, random: np.random.Generator) -> tuple[list[EvalResult], Behaviour]:
    """One episode a task."""
    n = len(chances)
    wrong, half = random.random(n) < WRONG, random.random(n) < 0.5
    turns = np.where(wrong, LIMIT, random.integers(2, 5, n))
    found = [
        EvalResult(
            suite="dev", mode=mode, iteration=k, checkpoint=f"c{k}", pool_version=POOLS[mode], task_id=str(task),
            success=float(won), premature=False, truncated=bool(cut), turns=steps, action_tokens=10 * steps, invalid=0,
            nll=0.1,
        )
        for task, (won, cut, steps) in enumerate(zip(random.random(n) < chances, wrong, turns.tolist(), strict=True))
    ]  # fmt: skip
    return found, Behaviour(episodes=n, steps=int(turns.sum()), repeated=BAD * int((wrong & ~half).sum()))


if __name__ == "__main__":
    main()
