"""Converts records of runs of version 1 as they are read: stages were marked by text, actions and results were text."""

from __future__ import annotations

import json
import re
from typing import Any

from internalize.records import Message, Stage, StageMark, ToolCall, json_value, result_of

MARK = b'"action_text": '  # a key of every step of version 1, and of no other record
_EPISODES = re.compile(r"episodes-(?P<suite>.+)-(?P<mode>internalized|in-context)-(?P<policy>\d+)(?P<second>-second)?")
_EVALUATE = re.compile(r"evaluate (?P<suite>.+) (?P<mode>internalized|in_context) (?P<policy>\d+)(?P<second> second)?")
_COLLECT = re.compile(r"teacher(?:-(?P<round>\d+))?")
_ROUND = re.compile(r"round (?P<round>\d+)")
_PLAIN = ("extract", "distill", "gate", "second")


def mark_of(line: bytes) -> StageMark | None:
    """The mark of one line of progress.jsonl, of either version; None for a stage that no longer exists."""
    data = json_value(line)
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
    return None  # "warned": warnings are computed from the measurements when they are needed


def upgraded(line: bytes) -> bytes:
    """A line of version 1 as one of version 2; an invalid line is returned unchanged, for its reader to report."""
    try:
        values = json_value(line)
    except ValueError:
        return line
    steps = values.get("steps") if isinstance(values, dict) else None
    if not isinstance(steps, list) or not all(isinstance(step, dict) and "action_text" in step for step in steps):
        return line  # a text that quotes the key
    return json.dumps({**values, "steps": [_step(number, step) for number, step in enumerate(steps)]}).encode()


def _step(number: int, values: dict[str, Any]) -> dict[str, Any]:
    rest = {name: value for name, value in values.items() if name not in {"action_text", "action", "observation"}}
    text, action, observation = values["action_text"], values.get("action"), values.get("observation")
    calls: tuple[ToolCall, ...] = ()
    if action is not None:
        call = ToolCall.from_text(action["name"], action["argument"])
        calls = (call.model_copy(update={"id": f"call_{number}"}),)
    message = Message(role="assistant", content="" if calls else text, tool_calls=calls)
    results = [] if observation is None else [result_of(calls, 0, observation).model_dump(mode="json")]
    return {**rest, "text": text, "message": message.model_dump(mode="json"), "results": results}
