"""Traces of verifiers (also written by prime-rl): `results.jsonl` of version 0, `traces.jsonl` of version 1.

A trace of version 1 is a graph of messages; each path from a root to a leaf is an episode. The first episode that holds
a turn learns it, if the model sampled it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from internalize.errors import DataError
from internalize.records import Trajectory

from .chat import from_line
from .reading import Session
from .repairs import Raw
from .sessions import COPIED

_FOREIGN = "not sampled in this episode"


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are traces of version 1."""
    first = head[0]
    return "nodes" in first or (isinstance(first.get("traces"), list) and "messages" not in first)


def recognizes_results(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are results of version 0."""
    return {"prompt", "completion", "reward"} <= head[0].keys() and bool({"example_id", "task"} & head[0].keys())


def read_results(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episode of one line of results.jsonl. Raises DataError."""
    if not isinstance(value, Mapping):
        raise DataError("is no JSON object")
    if value.get("completion") in ([], ""):
        session.notes.dropped["conversation without an answer"] += 1
        return
    task = value.get("example_id")
    env = value.get("task") if isinstance(value.get("task"), str) else None
    line = {**value, "task": f"{env or ''}{'/' if env else ''}{task}" if task is not None else value.get("task")}
    yield from_line({**line, "env": value.get("env") or env, "id": None, "score": None}, session)


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episodes of one line of traces.jsonl. Raises DataError."""
    traces = value.get("traces", [value]) if isinstance(value, Mapping) else None
    if not isinstance(traces, list):
        raise DataError("traces: is no list")
    for trace in traces:
        if not isinstance(trace, Mapping) or not isinstance(trace.get("nodes"), list):
            raise DataError("traces: a trace without nodes")
        if isinstance(agent := trace.get("agent"), Mapping) and agent.get("trainable") is False:
            session.notes.dropped["trace of an agent that is not trained"] += 1
            continue
        yield from _episodes(trace, session)


def _episodes(trace: Mapping[str, Any], session: Session) -> Iterator[Trajectory]:
    nodes = trace["nodes"]
    parents = {_parent(nodes, number) for number in range(len(nodes))}
    learnt: set[int] = set()
    score = _score(trace.get("rewards") or {})
    errors = trace.get("errors") or trace.get("error")
    for leaf in (number for number in range(len(nodes)) if number not in parents):
        path = _path(nodes, leaf)
        messages = [_message(nodes[number], copied=number in learnt) for number in path]
        learnt |= set(path)
        if not any(message.get("role") == "assistant" for message in messages):
            session.notes.dropped["conversation without an answer"] += 1
            continue
        line = {"task": _task(trace), "model": _model(trace), "score": score, "error": errors, "messages": messages}
        yield from_line({**line, "tools": nodes[path[0]].get("tools") or trace.get("tools")}, session)


def _score(rewards: Any) -> float | None:
    """The weighted sum of the rewards; None where scoring did not run. Raises DataError."""
    try:
        given = [reward for reward in rewards.values() if reward is not None]
        return sum(float(r["score"]) * float(r.get("weight", 1.0)) for r in given) if given else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"rewards: is no object of scores and weights ({error})") from error


def _path(nodes: Sequence[Any], leaf: int) -> list[int]:
    """The numbers of the nodes from the root to a leaf."""
    path: list[int] = []
    number: int | None = leaf
    while number is not None:
        path.append(number)
        number = _parent(nodes, number)
    return path[::-1]


def _parent(nodes: Sequence[Any], number: int) -> int | None:
    """The number of the node before a node; None for a root. Raises DataError for one that is not earlier."""
    parent = nodes[number].get("parent") if isinstance(nodes[number], Mapping) else None
    if parent is not None and not (isinstance(parent, int) and 0 <= parent < number):
        raise DataError(f"nodes.{number}.parent: {parent} is no earlier node")
    return parent


def _message(node: Any, *, copied: bool) -> Raw:
    message = node.get("message") if isinstance(node, Mapping) else None
    if not isinstance(message, Mapping):
        raise DataError("nodes: a node without a message")
    left_out = COPIED if copied else "" if node.get("sampled", True) else _FOREIGN
    return {**message, "left_out": left_out} if message.get("role") == "assistant" else dict(message)


def _task(trace: Mapping[str, Any]) -> object:
    task = trace.get("task")
    return (task.get("key") or task.get("hash")) if isinstance(task, Mapping) else task


def _model(trace: Mapping[str, Any]) -> object:
    calls = trace.get("calls")
    models = [call.get("model") for call in calls if isinstance(call, Mapping)] if isinstance(calls, list) else []
    return next((model for model in models if model), None)
