"""How often judges are right on pairs labelled by hand (tests/data/judge_pairs.jsonl).

    python -m benchmarks.judges                          exact, maths, and exact then maths
    python -m benchmarks.judges --errors                 and every pair that a judge got wrong
    python -m benchmarks.judges --model builtin --pairs 40       the built-in model too, on 40 pairs drawn by the seed
    python -m benchmarks.judges --maths FILE             wrong and right accepts on pairs of mathematical answers

A line of FILE is {"reference": ..., "answer": ..., "equal": true or false}; tests/data/maths_pairs.jsonl is one.

Accuracy is a share of the scored pairs, unscored one of all. A false accept is a wrong answer that was accepted (share
of the wrong answers that were scored), a false reject a right one that was not. Intervals are Wilson's, 95 %. The pairs
are few and written by one hand to cover kinds of answers: the figures compare judges, they do not foretell what a judge
does on somebody's own answers.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import click

from internalize.config.schema import Config, ModelConfig
from internalize.evaluation.stats import Interval, wilson
from internalize.interfaces import Judge
from internalize.judge import ChainJudge, ExactJudge, MathJudge, ModelJudge
from internalize.records import Claim, Record
from internalize.runs.store import read_jsonl

COLUMNS = ("accuracy", "false accept", "false reject", "unscored")
PAIRS = Path(__file__).parents[1] / "tests" / "data" / "judge_pairs.jsonl"
Kind = Literal["name", "number", "date", "unit", "list", "maths", "paraphrase", "near", "refusal", "injection"]


class Pair(Record):
    """An answer and whether it is right."""

    kind: Kind
    question: str
    reference: str
    answer: str
    label: bool

    @property
    def claim(self) -> Claim:
        return Claim(question=self.question, reference=self.reference, answer=self.answer)


class MathsPair(Record):
    """A reference, an answer and whether they are equal."""

    reference: str
    answer: str
    equal: bool


class Graded(Record):
    """What a judge said of a pair."""

    pair: Pair
    score: float | None
    reason: str


def pairs(path: Path = PAIRS) -> list[Pair]:
    return [Pair.model_validate(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


async def grade(judge: Judge, asked: Sequence[Pair]) -> list[Graded]:
    found = await asyncio.gather(*(judge.judge(pair.claim) for pair in asked))
    return [Graded(pair=p, score=said.score, reason=said.reason) for p, said in zip(asked, found, strict=True)]


def shares(graded: Sequence[Graded]) -> dict[str, Interval | None]:
    """Accuracy, false accepts, false rejects and unscored, as the head of this file says."""
    scored = [g for g in graded if g.score is not None]
    wrong, right = [g for g in scored if not g.pair.label], [g for g in scored if g.pair.label]
    return {
        "accuracy": wilson(sum(g.score == g.pair.label for g in scored), len(scored)),
        "false accept": wilson(sum(g.score == 1 for g in wrong), len(wrong)),
        "false reject": wilson(sum(g.score == 0 for g in right), len(right)),
        "unscored": wilson(len(graded) - len(scored), len(graded)),
    }


def show(name: str, graded: Sequence[Graded], seconds: float, *, errors: bool) -> None:
    cells = [
        f"{100 * i.mean:5.1f} [{100 * i.low:4.1f}, {100 * i.high:5.1f}]" if i else "-" for i in shares(graded).values()
    ]
    print(
        f"{name:16}{len(graded):4d}  " + "  ".join(f"{cell:20}" for cell in cells) + f"  {seconds / len(graded):7.3f}"
    )
    for g in graded:
        if errors and g.score != g.pair.label:
            said = "unscored" if g.score is None else "accepted" if g.score else "rejected"
            print(f"    {said} {g.pair.kind:10} {g.pair.reference!r} <- {g.pair.answer!r}  {g.reason[:100]}")


def by_kind(name: str, graded: Sequence[Graded]) -> None:
    kinds = dict.fromkeys(g.pair.kind for g in graded)
    right = {k: [g.score == g.pair.label for g in graded if g.pair.kind == k] for k in kinds}
    print(f"{name:16} right by kind: " + ", ".join(f"{kind} {sum(r)}/{len(r)}" for kind, r in right.items()))


async def accepted(judge: Judge, asked: Sequence[MathsPair]) -> list[bool]:
    """Whether each answer was accepted; what is unscored was not."""
    claims = [Claim(question="", reference=pair.reference, answer=pair.answer) for pair in asked]
    return [verdict.score == 1 for verdict in await asyncio.gather(*map(judge.judge, claims))]


def compare_maths(file: Path, judges: dict[str, Judge], *, errors: bool) -> None:
    """Print how many unequal and how many equal pairs each judge accepts."""
    asked = read_jsonl(file, MathsPair)
    print(f"{'judge':16}{'wrong accepts':34}right accepts")
    for name, judge in judges.items():
        found = list(zip(asked, asyncio.run(accepted(judge, asked)), strict=True))
        cells = []
        for equal in (False, True):
            kept = [is_accepted for pair, is_accepted in found if pair.equal is equal]
            share = wilson(sum(kept), len(kept))
            interval = f"{share.mean:.1%} [{share.low:.1%}, {share.high:.1%}]" if share else "-"
            cells.append(f"{sum(kept)}/{len(kept)} = {interval}")
        print(f"{name:16}{cells[0]:34}{cells[1]}")
        for pair, is_accepted in found:
            if errors and is_accepted != pair.equal:
                print(f"    {'accepted' if is_accepted else 'refused'} {pair.reference!r} <- {pair.answer!r}")


@click.command(help=__doc__)
@click.option("--model", default="", help="Model source to judge with as well, such as 'builtin'.")
@click.option("--pairs", "count", default=40, show_default=True, help="Pairs for the model.")
@click.option("--seed", default=0, show_default=True, help="Seed of the draw of those pairs.")
@click.option("--errors", is_flag=True, help="List what each judge got wrong.")
@click.option("--maths", "file", type=click.Path(path_type=Path, exists=True), help="Pairs of mathematical answers.")
def main(model: str, count: int, seed: int, file: Path | None, *, errors: bool) -> None:
    everything = pairs()
    maths = MathJudge()
    judges: dict[str, Judge] = {
        "exact": ExactJudge(),
        "maths": maths,
        "exact, maths": ChainJudge([ExactJudge(), maths]),
    }
    if file:
        compare_maths(file, judges, errors=errors)
        maths.close()
        return
    asked = dict.fromkeys(judges, everything)
    if model:
        from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - seconds to import

        config = Config(model=ModelConfig(source=model))
        judges["model"] = ModelJudge(LocalPolicy.load(config).chat)
        asked["model"] = random.Random(seed).sample(everything, count)
    print(f"{'judge':16}{'n':>4}  " + "".join(f"{name + ' %':22}" for name in COLUMNS) + "s each")
    for name, judge in judges.items():
        started = time.monotonic()
        graded = asyncio.run(grade(judge, asked[name]))
        show(name, graded, time.monotonic() - started, errors=errors)
        by_kind(name, graded)
    maths.close()


if __name__ == "__main__":
    main()
