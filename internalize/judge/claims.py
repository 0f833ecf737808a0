"""Grades a file of claims into a file of verdicts, which is extended after every group, so that a call can resume.

Unscored claims are judged again by the next call.
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

GROUP = 32  # claims judged concurrently


class ClaimLine(Claim):
    """One line of the input; `id` is the caller's name for the claim and does not affect the verdict."""

    id: str | int | None = None

    @property
    def claim(self) -> Claim:
        """The claim without its id."""
        return Claim(question=self.question, reference=self.reference, answer=self.answer)


class Verdict(Record):
    """One line of the output. `id` is the hash of the claim, the judge and the number of earlier equal claims.

    `claim_id` is the `id` of the claim; `score` None = unscored.
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

    Raises DataError if a file cannot be read or `out` holds verdicts on other claims.
    """
    lines = _claims(claims, config)
    done = _scored_verdicts(out, lines)
    known = {lines[key].claim: Judgement(score=v.score, judge=v.judge, reason=v.reason) for key, v in done.items()}
    missing = [key for key in lines if key not in done]
    for start in range(0, len(missing), GROUP):
        keys = missing[start : start + GROUP]
        new = list(dict.fromkeys(lines[key].claim for key in keys if lines[key].claim not in known))
        outcomes = await asyncio.gather(*map(judge.judge, new), return_exceptions=True)
        known |= {claim: result for claim, result in zip(new, outcomes, strict=True) if isinstance(result, Judgement)}
        verdicts = [
            Verdict(id=key, claim_id=lines[key].id, **known[lines[key].claim].model_dump())
            for key in keys
            if lines[key].claim in known
        ]
        append_jsonl(out, verdicts)  # before a failure is raised, so that the finished verdicts of the group are kept
        for failure in outcomes:
            if isinstance(failure, BaseException):
                raise failure
        done |= {verdict.id: verdict for verdict in verdicts}
        progress("judge", len(done), len(lines))
    ordered = [done[key].model_copy(update={"claim_id": line.id}) for key, line in lines.items()]
    write_jsonl(out, ordered)
    return ordered


def _claims(path: Path, config: Config) -> dict[str, ClaimLine]:
    """The claims of a file by the id of their verdict."""
    settings = [config.judge.model_dump(mode="json")]
    if config.judge.asks_model and config.judge.endpoint in config.endpoints:
        endpoint = config.endpoints[config.judge.endpoint]
        asked = endpoint.model_dump(mode="json", include={"base_url", "model", "body", "answer_tokens"})
        settings.append({key: value for key, value in asked.items() if value})
    lines: dict[str, ClaimLine] = {}
    before: Counter[Claim] = Counter()
    for line in read_jsonl(path, ClaimLine):
        repetition = [before[line.claim]] if before[line.claim] else []
        lines[content_hash([line.claim.model_dump(mode="json"), *settings, *repetition])] = line
        before[line.claim] += 1
    if not lines:
        raise DataError(f"{path}: holds no claims")
    return lines


def _scored_verdicts(out: Path, lines: dict[str, ClaimLine]) -> dict[str, Verdict]:
    """The scored verdicts that an earlier call left in `out`, by id."""
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")
    recover(out)
    verdicts = read_jsonl(out, Verdict) if out.exists() else []
    if any(verdict.id not in lines for verdict in verdicts):
        raise DataError(f"{out}: holds verdicts on other claims or of another judge; choose another --out")
    return {verdict.id: verdict for verdict in verdicts if verdict.score is not None}
