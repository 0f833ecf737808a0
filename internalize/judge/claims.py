"""Grades a file of claims into a file of verdicts, in which every finished group is kept.

A claim without a score is judged again by the next call.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from internalize.config.schema import Config
from internalize.errors import DataError, UserError
from internalize.interfaces import Judge
from internalize.records import Claim, Judgement, Record, content_hash
from internalize.runs.store import append_jsonl, read_jsonl, recover, write_jsonl

GROUP = 32  # claims judged at once


class ClaimLine(Claim):
    """One line of the input; `id` is the caller's own name for it and changes no verdict."""

    id: str | int | None = None

    @property
    def claim(self) -> Claim:
        """What is judged."""
        return Claim(question=self.question, reference=self.reference, answer=self.answer)


class Verdict(Record):
    """One line of the output. `id` is the hash of claim, judge and how often the claim came before.

    `claim_id` is the claim's `id`; `score` None = unscored.
    """

    id: str
    claim_id: str | int | None = None
    score: float | None
    judge: str
    reason: str = ""


async def judge_file(
    claims: Path, out: Path, judge: Judge, config: Config, progress: Callable[[str, int, int], None]
) -> list[Verdict]:
    """The verdicts in the order of the claims, written to `out`; equal claims are judged once and share a verdict.

    Raises DataError for a file that cannot be read or an `out` that holds something else.
    """
    asked = _claims(claims, config)
    done = _done(out, asked)
    known = {asked[name].claim: _judgement(verdict) for name, verdict in done.items()}
    owed = [name for name in asked if name not in done]
    for start in range(0, len(owed), GROUP):
        names = owed[start : start + GROUP]
        new = list(dict.fromkeys(asked[name].claim for name in names if asked[name].claim not in known))
        judged = await asyncio.gather(*map(judge.judge, new), return_exceptions=True)
        known |= {claim: verdict for claim, verdict in zip(new, judged, strict=True) if isinstance(verdict, Judgement)}
        there = [name for name in names if asked[name].claim in known]
        found = [Verdict(id=n, claim_id=asked[n].id, **known[asked[n].claim].model_dump()) for n in there]
        append_jsonl(out, found)
        for failure in judged:
            if isinstance(failure, BaseException):
                raise failure
        done |= {verdict.id: verdict for verdict in found}
        progress("judge", len(done), len(asked))
    ordered = [done[name].model_copy(update={"claim_id": line.id}) for name, line in asked.items()]
    write_jsonl(out, ordered)
    return ordered


def _judgement(verdict: Verdict) -> Judgement:
    return Judgement(score=verdict.score, judge=verdict.judge, reason=verdict.reason)


def _claims(path: Path, config: Config) -> dict[str, ClaimLine]:
    settings = [config.judge.model_dump(mode="json")]
    if config.judge.asks_model and config.judge.endpoint in config.endpoints:
        endpoint = config.endpoints[config.judge.endpoint]
        settings.append({"base_url": endpoint.base_url, "model": endpoint.model})
    named: dict[str, ClaimLine] = {}
    before: Counter[Claim] = Counter()
    for line in read_jsonl(path, ClaimLine):
        times = [before[line.claim]] if before[line.claim] else []
        named[content_hash([line.claim.model_dump(mode="json"), *settings, *times])] = line
        before[line.claim] += 1
    if not named:
        raise DataError(f"{path}: holds no claims")
    return named


def _done(out: Path, asked: dict[str, ClaimLine]) -> dict[str, Verdict]:
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")
    recover(out)
    found = read_jsonl(out, Verdict) if out.exists() else []
    if any(verdict.id not in asked for verdict in found):
        raise DataError(f"{out}: holds verdicts on other claims or of another judge; choose another --out")
    return {verdict.id: verdict for verdict in found if verdict.score is not None}
