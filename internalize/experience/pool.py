"""The experience pool: a value that changes only through edits, so that every item can be traced.

    edits -> pool.apply(edits) -> new pool; replay(all edits) == the pool

An item's id is the hash of its text, so it never changes meaning: new wording is a new item with `parents`. Nothing is
removed silently to hold the cap: `over_cap` gives the DELETE edits that belong in the log, and `apply` refuses a result
that is too large. Both pool formats of the paper's released code are read and written.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from internalize.errors import DataError
from internalize.records import Experience, Granularity, PoolEdit, Record, Trajectory, content_hash, json_value
from internalize.runs.store import first_problem, read_jsonl, write_json

Items = dict[str, Experience]


@dataclass(frozen=True)
class ExperiencePool:
    """At most `cap` items in a fixed order. Raises DataError on a repeated id or one that is not its text's hash."""

    items: tuple[Experience, ...]
    cap: int

    def __post_init__(self) -> None:
        if len(self.items) > self.cap:
            raise DataError(f"the pool would hold {len(self.items)} items, more than its cap of {self.cap}")
        if len({item.id for item in self.items}) < len(self.items):
            raise DataError("the pool holds an item id twice")
        for item in self.items:
            _check_id(item)

    @functools.cached_property
    def version(self) -> str:
        """Content hash of the items in their order."""
        return content_hash([_hashed(item) for item in self.items])

    def apply(self, edits: Iterable[PoolEdit]) -> ExperiencePool:
        """The pool after `edits`, one after another; only the result has to fit the cap.

        ADD of a text already held adds its evidence to the item. UPDATE and MERGE put one item with
        `parents` in the place of their first target. Raises DataError naming the edit when a target
        is unknown, a part is missing or surplus, or the result exceeds the cap.
        """
        return ExperiencePool(tuple(self._edited(edits).values()), self.cap)

    def over_cap(self, edits: Iterable[PoolEdit] = ()) -> tuple[PoolEdit, ...]:
        """The DELETE edits without which `apply(edits)` would exceed the cap; () if it fits.

        The weakest go first: lowest support * lift, then the oldest. Apply and log `edits` plus these.
        """
        items = list(self._edited(edits).values())
        weakest = sorted(items, key=lambda item: (item.support * item.lift, item.iteration))
        return tuple(
            PoolEdit(
                op="DELETE", targets=(item.id,), reason=f"over the cap of {self.cap}: {_strength(item)}", cause="cap"
            )
            for item in weakest[: max(0, len(items) - self.cap)]
        )

    def _edited(self, edits: Iterable[PoolEdit]) -> Items:
        items = {item.id: item for item in self.items}
        for number, edit in enumerate(edits, start=1):
            try:
                items = OPERATIONS[edit.op](items, edit)
            except DataError as error:
                raise DataError(f"edit {number} ({edit.op}): {error}") from error
        return items


def _hashed(item: Experience) -> dict[str, Any]:
    """The fields that the version covers. Empty origins are left out, because older items had none."""
    return item.model_dump(mode="json", exclude=None if item.origins else {"origins"})


def empty(cap: int) -> ExperiencePool:
    """A pool without items."""
    return ExperiencePool((), cap)


def replay(edits: Iterable[PoolEdit], cap: int) -> ExperiencePool:
    """The pool after all edits of a log. Raises DataError if the log does not fit together."""
    return empty(cap).apply(edits)


def _add(items: Items, edit: PoolEdit) -> Items:
    if edit.targets:
        raise DataError("has targets; only an item is added")
    item = _item(edit)
    return {**items, item.id: _joined(items[item.id], item) if item.id in items else item}


def _replace(items: Items, edit: PoolEdit) -> Items:
    targets = _targets(items, edit)
    item = _item(edit)
    parents = dict.fromkeys([*item.parents, *targets])
    parents.pop(item.id, None)  # the same text is no new item
    item = item.model_copy(update={"parents": tuple(parents)})
    if item.id in items:
        item = _joined(items[item.id], item)
    place = item.id if item.id in items else targets[0]
    gone = set(targets) - {place}
    return {
        item.id if key == place else key: item if key == place else old for key, old in items.items() if key not in gone
    }


def _update(items: Items, edit: PoolEdit) -> Items:
    if len(edit.targets) != 1:
        raise DataError(f"has {len(edit.targets)} targets; one is updated")
    return _replace(items, edit)


def _merge(items: Items, edit: PoolEdit) -> Items:
    if len(set(edit.targets)) < 2:
        raise DataError("needs two targets or more")
    return _replace(items, edit)


def _delete(items: Items, edit: PoolEdit) -> Items:
    if edit.item is not None:
        raise DataError("has an item; only targets are deleted")
    targets = _targets(items, edit)
    return {key: item for key, item in items.items() if key not in targets}


def _none(items: Items, edit: PoolEdit) -> Items:  # noqa: ARG001 (same signature as the others)
    return items


OPERATIONS: dict[str, Callable[[Items, PoolEdit], Items]] = {
    "ADD": _add,
    "UPDATE": _update,
    "DELETE": _delete,
    "MERGE": _merge,
    "NONE": _none,
}


def _item(edit: PoolEdit) -> Experience:
    if edit.item is None:
        raise DataError("has no item")
    _check_id(edit.item)
    return edit.item


def _targets(items: Items, edit: PoolEdit) -> tuple[str, ...]:
    if not edit.targets:
        raise DataError("has no target")
    for target in edit.targets:
        if target not in items:
            raise DataError(f"unknown item {target}")
    return edit.targets


def _check_id(item: Experience) -> None:
    if item.id != content_hash(item.text):
        raise DataError(f"item {item.id} is not named after its text (the hash is {content_hash(item.text)})")


def _joined(held: Experience, new: Experience) -> Experience:
    # The better-backed measurement stays. Adding the counts would count shared evidence twice.
    best = new if new.support > held.support else held
    together = {
        "evidence": tuple(dict.fromkeys([*held.evidence, *new.evidence])),
        "parents": tuple(dict.fromkeys([*held.parents, *new.parents])),
        "origins": tuple(dict.fromkeys([*held.origins, *new.origins]))[:8],
        "support": best.support,
        "lift": best.lift,
    }
    return held.model_copy(update=together)


def _strength(item: Experience) -> str:
    return f"support {item.support}, lift {item.lift:+.2f}"


class PoolDiff(Record):
    """The difference of two pools. `changed` has the new state of items kept with other numbers."""

    added: tuple[Experience, ...]
    removed: tuple[Experience, ...]
    changed: tuple[Experience, ...]


def diff(old: ExperiencePool, new: ExperiencePool) -> PoolDiff:
    """Items that only `new` has, items that only `old` has, and items with other evidence or numbers."""
    before = {item.id: item for item in old.items}
    after = {item.id for item in new.items}
    return PoolDiff(
        added=tuple(item for item in new.items if item.id not in before),
        removed=tuple(item for item in old.items if item.id not in after),
        changed=tuple(item for item in new.items if before.get(item.id, item) != item),
    )


class Usage(Record):
    """How often an item was shown at scored decisions, and how often that episode then succeeded."""

    item_id: str
    selected: int
    succeeded: int


def count_usage(trajectories: Iterable[Trajectory]) -> tuple[Usage, ...]:
    """Usage of every item shown, by id. Unscored episodes do not count; success is a score of 1."""
    counts: dict[str, tuple[int, int]] = {}
    for trajectory in trajectories:
        if trajectory.score is None:
            continue
        success = int(trajectory.score >= 1)
        for item_id in _shown(trajectory):
            selected, succeeded = counts.get(item_id, (0, 0))
            counts[item_id] = selected + 1, succeeded + success
    return tuple(Usage(item_id=key, selected=n, succeeded=s) for key, (n, s) in sorted(counts.items()))


def _shown(trajectory: Trajectory) -> Iterator[str]:
    injections = [trajectory.global_injection, *(step.injection for step in trajectory.steps)]
    for injection in injections:
        yield from injection.item_ids if injection is not None else ()


def read_edits(path: Path) -> list[PoolEdit]:
    """The edits of a file. Version 1 wrote no cause: there a retirement is recognized by its reason."""
    edits = read_jsonl(path, PoolEdit)
    retired = (edit.cause is None and edit.reason.startswith("retired: ") for edit in edits)
    return [e.model_copy(update={"cause": "retired"}) if old else e for e, old in zip(edits, retired, strict=True)]


class PoolFile(Record):
    """pool.json."""

    version: str
    cap: int
    items: tuple[Experience, ...]


def save_pool(pool: ExperiencePool, path: Path) -> None:
    """Write pool.json, all or nothing."""
    write_json(path, PoolFile(version=pool.version, cap=pool.cap, items=pool.items))


def load_pool(path: Path) -> ExperiencePool:
    """Read pool.json. Raises DataError if it is broken or its version is not the hash of its items."""
    try:
        file = PoolFile.model_validate_json(_read(path))
        pool = ExperiencePool(file.items, file.cap)
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    if pool.version != file.version:
        raise DataError(f"{path}: field version says {file.version}, but the items hash to {pool.version}")
    return pool


def import_official(data: Any, granularity: Granularity, source: str = "external") -> tuple[PoolEdit, ...]:
    """ADD edits for a pool of the paper's released code: {"G0": text} or [{"id": "G0", "full_text": text}].

    A text of the list may begin with its own id ("[G0]. ") for the paper's selector; the id is removed here and kept in
    the edit's reason. Raises DataError naming the entry.
    """
    return tuple(
        PoolEdit(
            op="ADD",
            item=Experience.new(text, granularity, source),
            reason=f"imported from {old_id}",
            cause="imported",
        )
        for old_id, text in _official_pairs(data)
    )


def export_official(pool: ExperiencePool, style: Literal["dict", "list"]) -> dict[str, str] | list[dict[str, str]]:
    """The pool as the paper's released code reads it: "dict" for its extraction, "list" for its agent.

    Ids are G0, G1, ... in the pool's order. The list's texts begin with their id, because that code
    shows its selector nothing else to choose by.
    """
    named = {f"G{number}": item.text for number, item in enumerate(pool.items)}
    if style == "dict":
        return named
    return [{"id": old_id, "full_text": f"[{old_id}]. {text}"} for old_id, text in named.items()]


def load_official(path: Path, granularity: Granularity, source: str = "external") -> tuple[PoolEdit, ...]:
    """`import_official` of a JSON file; the message of a DataError begins with its path."""
    try:
        return import_official(json_value(_read(path), encodable=True), granularity, source)
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error})") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _official_pairs(data: Any) -> Iterator[tuple[str, str]]:
    if isinstance(data, dict):
        pairs: list[tuple[Any, Any]] = list(data.items())
    elif isinstance(data, list) and all(isinstance(entry, dict) for entry in data):
        pairs = [(entry.get("id"), entry.get("full_text")) for entry in data]
    else:
        raise DataError('neither {"G0": text} nor a list of {"id", "full_text"}')
    for number, (old_id, text) in enumerate(pairs, start=1):
        if not isinstance(old_id, str) or not isinstance(text, str):
            raise DataError(f"entry {number} ({old_id!r}): needs a text id and a text")
        bare = re.sub(rf"^\s*\[?{re.escape(old_id)}\]?\s*[.:]", "", text).strip()
        if not bare:
            raise DataError(f"entry {number} ({old_id!r}): its text is empty")
        yield old_id, bare


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error
