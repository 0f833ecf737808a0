"""Where the evidence of an item was seen: hosts, or calls where there are no addresses.

A rule that holds in a hundred episodes may still come from one malicious page. Items with a single origin are marked,
and `extract.independent` demands more origins.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from internalize.interfaces import Situation
from internalize.records import Trajectory

MOST = 8  # origins kept for an item
TASKS = "tasks"  # the origin of decisions before any result: the questions, which only the user writes


def origin(name: str, argument: str) -> str:
    """The host in a call's argument, else the call itself."""
    try:
        host = urlsplit(argument.strip()).hostname or ""
    except ValueError:
        host = ""
    return host or f"{name}[{argument}]"[:200]


def origin_of(situation: Situation) -> str:
    """The origin of the results on which a decision was made."""
    return origin(*situation.taken[-1]) if situation.taken else TASKS


def origins(trajectories: Iterable[Trajectory]) -> tuple[str, ...]:
    """The origins of all results in these episodes."""
    calls = (call for t in trajectories for step in t.steps if step.results for call in step.calls)
    return distinct(origin(call.name, call.argument) for call in calls)


def distinct(found: Iterable[str]) -> tuple[str, ...]:
    """The first MOST different ones."""
    return tuple(dict.fromkeys(found))[:MOST]


def said(found: tuple[str, ...]) -> str:
    """A note on an item with a single origin; "" for any other."""
    return f"rests on {found[0]} alone" if len(found) == 1 and found[0] != TASKS else ""
