"""What runs of version 1 wrote otherwise, converted where it is read: a mark held the name of its stage as text."""

from __future__ import annotations

import json
import re

from internalize.records import Stage, StageMark

_EPISODES = re.compile(r"episodes-(?P<suite>.+)-(?P<mode>internalized|in-context)-(?P<policy>\d+)(?P<second>-second)?")
_EVALUATE = re.compile(r"evaluate (?P<suite>.+) (?P<mode>internalized|in_context) (?P<policy>\d+)(?P<second> second)?")
_COLLECT = re.compile(r"teacher(?:-(?P<round>\d+))?")
_ROUND = re.compile(r"round (?P<round>\d+)")
_PLAIN = ("extract", "distill", "gate", "second")


def mark_of(line: bytes) -> StageMark | None:
    """The mark of one line of progress.jsonl, of either version; None if there is no such stage any more."""
    data = json.loads(line)
    if isinstance(data, dict) and isinstance(data.get("stage"), str):
        stage = _stage(int(data.pop("iteration")), data.pop("stage").removesuffix(".jsonl"))
        return StageMark(stage=stage, **data) if stage else None
    return StageMark.model_validate(data)


def _stage(iteration: int, text: str) -> Stage | None:
    if text == "rollouts":
        return Stage(iteration=iteration, kind="rollout")
    if text in _PLAIN:
        return Stage.model_validate({"iteration": iteration, "kind": text})
    if found := _COLLECT.fullmatch(text) or _ROUND.fullmatch(text):
        kind = "round" if found.re is _ROUND else "collect"
        return Stage(iteration=iteration, kind=kind, round=int(found["round"] or 0))
    for pattern in (_EPISODES, _EVALUATE):
        if found := pattern.fullmatch(text):
            return Stage.model_validate(
                {
                    "iteration": iteration,
                    "kind": "episodes" if pattern is _EPISODES else "evaluate",
                    "suite": found["suite"],
                    "mode": found["mode"].replace("-", "_"),
                    "policy": int(found["policy"]),
                    "candidate": 2 if found["second"] else 1,
                }
            )
    return None  # "warned": the signs are found again from what was measured
