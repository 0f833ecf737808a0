"""Result files of tau2-bench and its predecessor tau-bench: one JSON document whose simulations are episodes.

A simulation has both sides: calls of the simulated user and their results are not the agent's and are dropped. The
agent's policy, in the file's `info`, becomes the system message.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from internalize.errors import DataError
from internalize.records import Trajectory

from .chat import answered
from .notes import Notes
from .reading import Located, Session, items, json_values
from .repairs import Raw, list_in

_ENDS = {"agent_stop": "answered", "user_stop": "answered", "max_steps": "max_steps", "too_many_errors": "max_steps"}
_BROKEN = frozenset({"agent_error", "user_error", "infrastructure_error", "unexpected_error"})


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file is a document of simulations."""
    first = head[0]
    return "simulations" in first or ("info" in first and "tasks" in first and "timestamp" in first)


def recognizes_tau1(head: Sequence[dict[str, Any]]) -> bool:
    """Whether a file is a list of the episodes of tau-bench."""
    return {"traj", "reward", "task_id"} <= head[0].keys()


def values(path: Path) -> Iterator[Located]:
    """The simulations, one at a time, each with the document's common fields. Raises DataError."""
    about = next((value for _, value in items(path, "info")), None)
    for where, simulation in items(path, "simulations.item"):
        yield where.replace("item", "simulation"), {"info": about, "simulation": simulation}


def read(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episode of a simulation. Raises DataError."""
    simulation, info = value["simulation"], value["info"]
    if not isinstance(simulation, dict):
        raise DataError("is no JSON object")
    reason = str(simulation.get("termination_reason") or "")
    reward = simulation.get("reward_info")
    score = reward.get("reward") if isinstance(reward, Mapping) else None
    line = {
        "task": simulation.get("task_id"),
        "model": _at(info, "agent_info", "llm"),
        "env": _at(info, "environment_info", "domain_name"),
        "score": None if reason in _BROKEN else score,
        "error": reason if reason in _BROKEN else None,
        "termination": _ENDS.get(reason, reason),
    }
    policy = _at(info, "environment_info", "policy")
    system = [{"role": "system", "content": policy}] if policy else []
    messages = list_in(simulation, "messages")
    yield from answered({**line, "messages": [*system, *_agents(messages, session.notes)]}, session)


def read_tau1(value: Any, session: Session) -> Iterator[Trajectory]:
    """The episode of one entry of a result file of tau-bench. Raises DataError."""
    line = {"task": value.get("task_id"), "score": value.get("reward"), "messages": value.get("traj")}
    yield from answered(line, session)


def values_tau1(path: Path) -> Iterator[Located]:
    """The entries of a result file."""
    return ((where, value if isinstance(value, dict | DataError) else {}) for where, value in json_values(path))


def _agents(messages: Sequence[Any], notes: Notes) -> Iterator[Raw]:
    """The messages of the agent's side."""
    flat = itertools.chain.from_iterable(_inner(message) for message in messages)
    for message in flat:
        own = message.get("requestor", "assistant") == "assistant"
        if message.get("role") == "tool":
            if own:
                yield {"role": "tool", "tool_call_id": message.get("id"), "content": message.get("content")}
            else:
                notes.dropped["result of a call of the simulated user"] += 1
        elif message.get("role") == "user" and message.get("tool_calls"):
            notes.dropped["call of the simulated user"] += len(list_in(message, "tool_calls"))
            if message.get("content"):
                yield {"role": "user", "content": message["content"]}
        else:
            yield {name: message.get(name) for name in ("role", "content", "tool_calls")}


def _inner(message: Any) -> Sequence[Raw]:
    """A message, or the several results that one holds."""
    if not isinstance(message, dict):
        raise DataError("messages: holds what is no message")
    several = message.get("tool_messages")
    return [one for one in several if isinstance(one, dict)] if isinstance(several, list) else [message]


def _at(info: object, *names: str) -> Any:
    for name in names:
        info = info.get(name) if isinstance(info, Mapping) else None
    return info
