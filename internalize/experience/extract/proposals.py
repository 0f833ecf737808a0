"""What a language model proposes for a pool: the form of its answers, their checks, and one batch out of many.

Checks are made here whatever a server's schema enforces: ids only from those shown, words, counts, one edit an item.
`settle` makes any list of proposals apply to the pool. Left out: asking (llm.py), screening of texts (screen.py).
What must not change: a proposal keeps the trajectories it rests on through every joining; nothing is dropped without
a reason on record; DELETE deletes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from internalize.config.schema import ExtractConfig
from internalize.experience.pool import ExperiencePool
from internalize.records import Experience, PoolEdit, Record, content_hash
from internalize.runs.store import first_problem

Op = Literal["ADD", "UPDATE", "DELETE", "NONE", "MERGE"]
ModelT = TypeVar("ModelT", bound=BaseModel)
REASON = 200  # characters kept of a model's reason
_WORD = re.compile(r"\w+")
_EMPTY = frozenset(
    {"a", "an", "the", "this", "that", "is", "are", "be", "of", "to", "then", "it", "its", "your", "please"}
)


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Proposed(_Answer):
    """One edit as the model writes it."""

    op: Op
    targets: tuple[str, ...] = ()
    text: str = ""
    reason: str = ""


class Summary(_Answer):
    """An attempt retold."""

    summary: str


class Learnt(_Answer):
    """What the attempts at one task teach. The comparison comes first: it is what the edits are drawn from."""

    comparison: str = ""
    edits: tuple[Proposed, ...]


class Decided(Proposed):
    """One edit that stands for the proposals with these numbers."""

    proposals: tuple[int, ...]


class Decisions(_Answer):
    """A batch made to agree."""

    decisions: tuple[Decided, ...]


class Edits(_Answer):
    """Edits that shrink a pool."""

    edits: tuple[Proposed, ...]


@dataclass(frozen=True)
class Proposal:
    """A checked edit and what it rests on."""

    op: Op
    targets: tuple[str, ...]
    text: str
    reason: str
    evidence: tuple[str, ...]  # trajectory ids
    tasks: tuple[str, ...]

    def joined(self, other: Proposal) -> Proposal:
        """The proposal, resting on the other's evidence too."""
        return replace(
            self,
            evidence=tuple(dict.fromkeys([*self.evidence, *other.evidence])),
            tasks=tuple(dict.fromkeys([*self.tasks, *other.tasks])),
        )


class LeftOut(Record):
    """A proposal that did not become an edit, and why."""

    tasks: tuple[str, ...]
    op: Op
    text: str
    targets: tuple[str, ...]
    reason: str

    @staticmethod
    def of(proposal: Proposal, reason: str) -> LeftOut:
        """The record of a proposal that is kept out."""
        return LeftOut(
            tasks=proposal.tasks, op=proposal.op, text=proposal.text, targets=proposal.targets, reason=reason
        )


class Bounds(NamedTuple):
    """What an answer may hold: targets out of `ids`, at most `most` edits or decisions, proposals 1 to `most`.

    A small model that is held to a schema would else go on with either up to its last token.
    """

    ids: Collection[str] = ()
    most: int = 1


def schema_of(model: type[BaseModel], bounds: Bounds) -> dict[str, JsonValue]:
    """The JSON schema of an answer as strict servers want it: every property required, no other allowed."""
    found: dict[str, JsonValue] = json.loads(_schema_text(model))
    _make_strict(found, bounds)
    return found


@cache
def _schema_text(model: type[BaseModel]) -> str:
    """Made once: pydantic takes milliseconds for it, and every request wants one."""
    return json.dumps(model.model_json_schema())


def _make_strict(node: Any, bounds: Bounds) -> None:
    if isinstance(node, list):
        for entry in node:
            _make_strict(entry, bounds)
    elif isinstance(node, dict):
        for unwanted in ("default", "title", "description"):
            if not isinstance(node.get(unwanted), dict):  # a property may be called so
                node.pop(unwanted, None)
        if "properties" in node:
            node |= {"required": list(node["properties"]), "additionalProperties": False}
            _bound(node["properties"], bounds)
        for entry in node.values():
            _make_strict(entry, bounds)


def _bound(properties: dict[str, Any], bounds: Bounds) -> None:
    for name in properties.keys() & {"edits", "decisions"}:
        properties[name]["maxItems"] = bounds.most
    if "targets" in properties:
        named = {"enum": sorted(bounds.ids)} if bounds.ids else {}
        properties["targets"] = {"type": "array", "items": {"type": "string", **named}, "maxItems": len(bounds.ids)}
    if "proposals" in properties:
        numbers = {"type": "integer", "enum": [*range(1, bounds.most + 1)]}
        properties["proposals"] = {"type": "array", "items": numbers, "minItems": 1, "maxItems": bounds.most}


def read(model: type[ModelT], answer: dict[str, Any]) -> ModelT:
    """The answer as a record. Raises ValueError with the first problem in a few words."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def checked(edit: Proposed, shown: Collection[str], words: int) -> Proposal:
    """An edit whose form, ids and length are right; it rests on nothing yet. Raises ValueError saying what is wrong."""
    text, targets = " ".join(edit.text.split()), tuple(dict.fromkeys(edit.targets))
    if edit.op in ("ADD", "NONE"):
        targets = ()
    if edit.op in ("DELETE", "NONE"):
        text = ""
    wanted = {"UPDATE": 1, "DELETE": 1, "MERGE": 2}.get(edit.op, 0)
    if len(targets) < wanted or (edit.op == "UPDATE" and len(targets) > 1):
        raise ValueError(f"{edit.op} needs {'two ids or more' if wanted == 2 else 'one id'} in targets")
    for target in targets:
        if target not in shown:
            raise ValueError(f"{target!r} is no id of a held item; the ids are {', '.join(sorted(shown)) or '(none)'}")
    if edit.op in ("ADD", "UPDATE", "MERGE"):
        _check_length(edit.op, text, words)
    return Proposal(edit.op, targets, text, " ".join(edit.reason.split())[:REASON], (), ())


def _check_length(op: Op, text: str, words: int) -> None:
    if not text:
        raise ValueError(f"{op} needs a text")
    if len(text.split()) > words:
        raise ValueError(f"a text has {len(text.split())} words, at most {words} are allowed: {text[:80]!r}")


def check_all(edits: Iterable[Proposed], shown: Collection[str], words: int, limit: int) -> list[Proposal]:
    """Edits that change something, each item used once, at most `limit` items added or touched by DELETE.

    Raises ValueError.
    """
    found = [proposal for edit in edits if (proposal := checked(edit, shown, words)).op != "NONE"]
    if (number := sum(len(p.targets) if p.op == "DELETE" else 1 for p in found)) > limit:
        raise ValueError(f"{number} edits, at most {limit} are allowed")
    targets = [target for proposal in found for target in proposal.targets]
    for target in targets:
        if targets.count(target) > 1:
            raise ValueError(f"the item {target!r} is edited twice")
    return found


def settle(
    proposals: Sequence[Proposal], pool: ExperiencePool, config: ExtractConfig
) -> tuple[list[Proposal], list[LeftOut]]:
    """Proposals, best first, as a batch that applies to the pool; and what is left out of it.

    An item is edited once; a text that is nearly held already adds its evidence there; at most `config.add` are new.
    """
    kept: list[Proposal] = []
    left: list[LeftOut] = []
    used: set[str] = set()
    deleted: set[str] = set()
    new = 0
    for given in proposals:
        proposal = _onto_held(given, pool, used)
        reason = _conflict(proposal, used, deleted)
        twin = next(
            (n for n, other in enumerate(kept) if proposal.op == "ADD" and alike(other.text, proposal.text)), -1
        )
        is_new = proposal.op == "ADD" and content_hash(proposal.text) not in {item.id for item in pool.items}
        if not reason and twin < 0 and is_new and new == config.add:
            reason = f"more than {config.add} new items"
        if reason:
            left.append(LeftOut.of(given, reason))
        elif twin >= 0:
            kept[twin] = kept[twin].joined(proposal)
        else:
            kept.append(proposal)
            new += is_new
            used.update(proposal.targets)
            deleted.update(proposal.targets if proposal.op == "DELETE" else ())
    return kept, left


def _onto_held(proposal: Proposal, pool: ExperiencePool, used: Collection[str]) -> Proposal:
    """An ADD of what a held item says already, worded as that item: it then adds evidence only."""
    if proposal.op != "ADD":
        return proposal
    held = next((item for item in pool.items if item.id not in used and alike(item.text, proposal.text)), None)
    return replace(proposal, text=held.text) if held else proposal


def _conflict(proposal: Proposal, used: Collection[str], deleted: Collection[str]) -> str:
    taken = sorted(set(proposal.targets).intersection(used))
    if taken:
        return f"item {taken[0]} is edited by a stronger proposal"
    if proposal.text and content_hash(proposal.text) in deleted:
        return "its text is deleted by a stronger proposal"
    return ""


def alike(a: str, b: str) -> bool:
    """Whether two texts use the same words, small words aside; one other word may be another meaning."""
    first, second = (frozenset(_WORD.findall(text.lower())) - _EMPTY for text in (a, b))
    return bool(first) and first == second


def to_edit(proposal: Proposal, held: dict[str, Experience], config: ExtractConfig, source: str, k: int) -> PoolEdit:
    """The pool edit: a new item carries its own evidence and that of the items it takes the place of."""
    if proposal.op in ("DELETE", "NONE"):
        return PoolEdit(op=proposal.op, targets=proposal.targets, reason=proposal.reason)
    inherited = [one for target in proposal.targets if target in held for one in held[target].evidence]
    text_id = content_hash(proposal.text)
    item = Experience.new(
        proposal.text,
        config.granularity,
        source,
        evidence=tuple(dict.fromkeys([*proposal.evidence, *inherited])),
        parents=tuple(target for target in proposal.targets if target != text_id),
        iteration=k,
    )
    return PoolEdit(op=proposal.op, item=item, targets=proposal.targets, reason=proposal.reason)
