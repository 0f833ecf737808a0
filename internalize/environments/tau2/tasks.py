"""Splits of the telecom tickets.

    split_by  train / dev / test / ...                                                   what `ood` holds
    official  the benchmark's 74 train tasks less `dev` (one in five); its 40 test tasks; `rest`, the 2,171 others
    content   all tasks, 60 / 20 / 20                                                    (none)
    pairs     tasks without any pair of `HELD_OUT_PAIRS`, 60 / 20 / 20                   tasks with one of them
    count     tasks of at most `FEW` faults, 60 / 20 / 20                                tasks with more
    family    tickets about service and picture messages, 60 / 20 / 20                   tickets about mobile data

The small subsets (at most two faults, one fault) have `content` alone: the splits of all tasks, restricted to the
subset. Outside `official`, the benchmark's own test tasks may stand in any split: figures are not comparable with it.
Only five ticket texts exist, so a task is identified by its hidden start and assertions, in which no two are alike. The
split of a task depends on its content alone.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

from internalize.records import Task, content_hash

from .telecom import official_splits, task_records

Subset = Literal["all", "two_faults", "one_fault"]
SplitBy = Literal["official", "content", "pairs", "count", "family"]
HELD_OUT_PAIRS = (
    frozenset({"airplane_mode_on", "data_mode_off"}),
    frozenset({"bad_network_preference", "bad_wifi_calling"}),
    frozenset({"airplane_mode_on", "break_apn_settings"}),
    frozenset({"bad_vpn", "data_saver_mode_on"}),
)
HELD_OUT_FAMILY = "mobile_data_issue"
FEW = 3
_MOST_FAULTS = {"all": 99, "two_faults": 2, "one_fault": 1}
_SALT = "2718"  # chosen so that every split of every subset has every family


def faults(name: str) -> tuple[str, ...]:
    """The faults in a task's name: `[family]fault|fault[PERSONA:kind]`."""
    return tuple(name.partition("]")[2].partition("[PERSONA")[0].split("|"))


def family(name: str) -> str:
    """What the ticket is about: service_issue, mobile_data_issue or mms_issue."""
    return name[1:].partition("]")[0]


@cache
def tasks_by_split(subset: Subset, split_by: SplitBy) -> dict[str, tuple[Task, ...]]:
    """The tasks of every split, in an order that depends on their content alone."""
    last = {"official": ("rest",), "content": ()}.get(split_by, ("ood",))
    found: dict[str, list[Task]] = {split: [] for split in ("train", "dev", "test", *last)}
    for name in task_records():
        if len(faults(name)) <= _MOST_FAULTS[subset]:
            task = Task.new(
                "tau2",
                split := _split_of(name, split_by),
                question(name),
                family=family(name),
                tau2_id=name,
                faults=list(faults(name)),
            )
            found[split].append(task)
    return {s: tuple(sorted(listed, key=lambda t: content_hash(["order", t.id]))) for s, listed in found.items()}


@cache
def question(name: str) -> str:
    """The ticket, with a hash of its hidden part: start and assertions."""
    record = task_records()[name]
    hidden = content_hash([record["initial_state"], record["evaluation_criteria"]])
    return f"Case {hidden}. {record['ticket']}"


def _split_of(name: str, split_by: SplitBy) -> str:
    if split_by == "official":
        sets = official_splits()
        if name in sets["train"]:
            return "dev" if _number(name) < 2 else "train"
        return "test" if name in sets["test"] else "rest"
    if _is_held_out(name, split_by):
        return "ood"
    return "train" if _number(name) < 6 else "dev" if _number(name) < 8 else "test"


@cache
def _number(name: str) -> int:
    """0 to 9, from the content of a task."""
    record = task_records()[name]
    return int(content_hash([_SALT, record["ticket"], record["initial_state"]]), 16) % 10


def _is_held_out(name: str, split_by: SplitBy) -> bool:
    own = frozenset(faults(name))
    if split_by == "pairs":
        return any(pair <= own for pair in HELD_OUT_PAIRS)
    if split_by == "count":
        return len(own) > FEW
    return split_by == "family" and family(name) == HELD_OUT_FAMILY
