"""Where what an item rests on was seen: hosts, or the calls that showed it where there are no addresses.

A rule that holds in a hundred episodes may still come from one page that somebody wrote for it. An item with one
origin says so, and `extract.independent` asks for more.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from internalize.interfaces import Situation
from internalize.records import Trajectory

MOST = 8  # kept of an item
TASKS = "tasks"  # the origin of what was decided before anything was seen: the questions, which nobody else writes


def origin(name: str, argument: str) -> str:
    """The host that a call asked, or the call."""
    try:
        host = urlsplit(argument.strip()).hostname or ""
    except ValueError:
        host = ""
    return host or f"{name}[{argument}]"[:200]


def origin_of(situation: Situation) -> str:
    """What showed the results that a decision was made on."""
    return origin(*situation.taken[-1]) if situation.taken else TASKS


def origins(trajectories: Iterable[Trajectory]) -> tuple[str, ...]:
    """All that these episodes saw."""
    calls = (call for t in trajectories for step in t.steps if step.results for call in step.calls)
    return distinct(origin(call.name, call.argument) for call in calls)


def distinct(found: Iterable[str]) -> tuple[str, ...]:
    """The first MOST of them."""
    return tuple(dict.fromkeys(found))[:MOST]


def said(found: tuple[str, ...]) -> str:
    """In words; "" where nothing is known or several origins agree."""
    return f"rests on {found[0]} alone" if len(found) == 1 and found[0] != TASKS else ""
