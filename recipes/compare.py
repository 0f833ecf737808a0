"""Paired comparison over seeds: `python recipes/compare.py --before A0 --before A1 --after B0 --after B1`.

Files are those that `internalize evaluate` writes beside its episodes (`*.results.jsonl`), one a seed, in order.
"""

from pathlib import Path

import click

from internalize.evaluation.metrics import by_task
from internalize.evaluation.stats import mean_runs, paired_difference_runs
from internalize.records import EvalResult
from internalize.runs.store import read_jsonl

_FILES = click.Path(exists=True, path_type=Path)


@click.command(help=__doc__)
@click.option("--before", multiple=True, required=True, type=_FILES)
@click.option("--after", multiple=True, required=True, type=_FILES)
def main(before: tuple[Path, ...], after: tuple[Path, ...]) -> None:
    runs = [[read_jsonl(path, EvalResult) for path in paths] for paths in (before, after)]
    scores = [[by_task(results) for results in group] for group in runs]
    for name, group, flat in zip(("before", "after"), scores, runs, strict=True):
        results = [r for run in flat for r in run]
        premature = sum(r.premature for r in results) / len(results)
        turns = sum(r.turns for r in results) / len(results)
        print(
            f"{name}: {mean_runs(group)}  premature {premature:.3f}  turns {turns:.2f}  each {[round(m.mean, 3) for s in group if (m := mean_runs([s]))]}"
        )
    print(f"difference: {paired_difference_runs(scores[0], scores[1])}")
    for family in sorted({r.family for run in runs[0] for r in run}):
        means = [_mean([r for run in group for r in run if r.family == family]) for group in runs]
        print(f"  {family:10} {means[0]:.3f} -> {means[1]:.3f}")


def _mean(results: list[EvalResult]) -> float:
    scored = [r.success for r in results if r.success is not None]
    return sum(scored) / max(1, len(scored))


if __name__ == "__main__":
    main()
