"""Grades a file of claims into a file of verdicts, in which every finished group is kept.

A claim without a score is judged again by the next call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from internalize.config.schema import Config
from internalize.errors import DataError, UserError
from internalize.interfaces import Judge
from internalize.records import Claim, Judgement, Record, content_hash
from internalize.runs.store import append_jsonl, read_jsonl, recover, write_jsonl

GROUP = 32  # claims judged at once


class Verdict(Record):
    """One line of the output. `id` is the hash of the claim and the judge's settings; `score` None = unscored."""

    id: str
    score: float | None
    judge: str
    reason: str = ""


async def judge_file(
    claims: Path, out: Path, judge: Judge, config: Config, progress: Callable[[str, int, int], None]
) -> list[Verdict]:
    """The verdicts in the order of the claims, written to `out`.

    Raises DataError for a file that cannot be read, repeated claims, or an `out` that holds something else.
    """
    asked = _claims(claims, config)
    done = _done(out, asked)
    owed = [name for name in asked if name not in done]
    for start in range(0, len(owed), GROUP):
        names = owed[start : start + GROUP]
        judged = await asyncio.gather(*(judge.judge(asked[name]) for name in names), return_exceptions=True)
        found = [
            Verdict(id=n, **j.model_dump()) for n, j in zip(names, judged, strict=True) if isinstance(j, Judgement)
        ]
        append_jsonl(out, found)
        for failure in judged:
            if isinstance(failure, BaseException):
                raise failure
        done |= {verdict.id: verdict for verdict in found}
        progress("judge", len(done), len(asked))
    ordered = [done[name] for name in asked]
    write_jsonl(out, ordered)
    return ordered


def _claims(path: Path, config: Config) -> dict[str, Claim]:
    settings = [config.judge.model_dump(mode="json")]
    if config.judge.asks_model and config.judge.endpoint in config.endpoints:
        endpoint = config.endpoints[config.judge.endpoint]
        settings.append({"base_url": endpoint.base_url, "model": endpoint.model})
    found = read_jsonl(path, Claim)
    if not found:
        raise DataError(f"{path}: holds no claims")
    named = {content_hash([claim.model_dump(mode="json"), *settings]): claim for claim in found}
    if len(named) < len(found):
        raise DataError(f"{path}: {len(found) - len(named)} claims stand there twice")
    return named


def _done(out: Path, asked: dict[str, Claim]) -> dict[str, Verdict]:
    if not out.parent.is_dir():
        raise UserError(f"{out}: the folder {out.parent} does not exist")
    recover(out)
    found = read_jsonl(out, Verdict) if out.exists() else []
    if any(verdict.id not in asked for verdict in found):
        raise DataError(f"{out}: holds verdicts on other claims or of another judge; choose another --out")
    return {verdict.id: verdict for verdict in found if verdict.score is not None}
