"""The edits that a language model proposes: the form of its answers, their checks, and how they are merged.

Every answer is checked here, whatever schema a server enforces: ids only from those shown, length, counts, one edit an
item. A merged proposal keeps the evidence of its parts, and each dropped proposal is recorded with a reason.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from internalize.config.schema import ExtractConfig
from internalize.experience.pool import ExperiencePool
from internalize.experience.words import word_count, words_of
from internalize.records import Experience, PoolEdit, Record, content_hash
from internalize.runs.store import first_problem

Op = Literal["ADD", "UPDATE", "DELETE", "NONE", "MERGE"]
ModelT = TypeVar("ModelT", bound=BaseModel)
MOST_REASON = 200  # characters kept of a model's reason
_SMALL_WORDS = frozenset(
    {"a", "an", "the", "this", "that", "is", "are", "be", "of", "to", "then", "it", "its", "your", "please"}
)


class Answer(BaseModel):
    """Base of a model's answers; fields beyond those asked for are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class SummaryAnswer(Answer):
    """The summary of an attempt."""

    summary: str

    def text(self) -> str:
        """The summary without white space around it. Raises ValueError if it is empty."""
        if not self.summary.strip():
            raise ValueError("the summary is empty")
        return self.summary.strip()


class ProposedEdit(Answer):
    """One edit as the model writes it."""

    op: Op
    targets: tuple[str, ...] = ()
    text: str = ""
    reason: str = ""


class ComparisonAnswer(Answer):
    """What the attempts at one task teach. The comparison comes first, so that the edits follow from it."""

    comparison: str = ""
    edits: tuple[ProposedEdit, ...]


class Decision(ProposedEdit):
    """One edit in place of the proposals with these numbers."""

    proposals: tuple[int, ...]


class ReconciliationAnswer(Answer):
    """Edits that agree with each other."""

    decisions: tuple[Decision, ...]


class ConsolidationAnswer(Answer):
    """Edits that shrink a pool."""

    edits: tuple[ProposedEdit, ...]


@dataclass(frozen=True)
class Proposal:
    """A checked edit and its evidence."""

    op: Op
    targets: tuple[str, ...]
    text: str
    reason: str
    evidence: tuple[str, ...]  # trajectory ids
    tasks: tuple[str, ...]

    def resting_on(self, evidence: Iterable[str], tasks: Iterable[str]) -> Proposal:
        """The proposal with further evidence and tasks."""
        return replace(
            self,
            evidence=tuple(dict.fromkeys([*self.evidence, *evidence])),
            tasks=tuple(dict.fromkeys([*self.tasks, *tasks])),
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
        """The record of a proposal that is left out."""
        fields = {name: getattr(proposal, name) for name in ("tasks", "op", "text", "targets")}
        return LeftOut(**fields, reason=reason)


class Bounds(NamedTuple):
    """Bounds of an answer: targets out of `ids`, at most `most` edits or decisions, proposals 1 to `most`.

    Without them a small model that is held to a schema may repeat entries up to its last token.
    """

    ids: Collection[str] = ()
    most: int = 1


def schema_of(model: type[BaseModel], bounds: Bounds) -> dict[str, JsonValue]:
    """The JSON schema of an answer in the form of strict servers: every property required, no other allowed."""
    schema: dict[str, Any] = json.loads(_schema_text(model))
    for part in (schema, *schema.get("$defs", {}).values()):
        properties = part["properties"]
        for node in (part, *properties.values()):
            for unwanted in ("default", "title", "description"):
                node.pop(unwanted, None)
        part |= {"required": list(properties), "additionalProperties": False}
        for name in properties.keys() & {"edits", "decisions"}:
            properties[name]["maxItems"] = bounds.most
        if "targets" in properties:
            ids = {"type": "string", **({"enum": sorted(bounds.ids)} if bounds.ids else {})}
            properties["targets"] = {"type": "array", "items": ids, "maxItems": len(bounds.ids)}
        if "proposals" in properties:
            numbers = {"type": "integer", "enum": [*range(1, bounds.most + 1)]}
            properties["proposals"] = {"type": "array", "items": numbers, "minItems": 1, "maxItems": bounds.most}
    return schema


@cache
def _schema_text(model: type[BaseModel]) -> str:
    """Cached, because pydantic takes milliseconds and every request needs a schema."""
    return json.dumps(model.model_json_schema())


def read(model: type[ModelT], answer: dict[str, Any]) -> ModelT:
    """The answer as a record. Raises ValueError with the first problem in a few words."""
    try:
        return model.model_validate(answer)
    except ValidationError as error:
        raise ValueError(first_problem(error)) from error


def checked(edit: ProposedEdit, shown: Collection[str], words: int) -> Proposal:
    """The edit if its form, ids and length are right, without evidence yet. Raises ValueError with the problem."""
    op, text = edit.op, "" if edit.op in ("DELETE", "NONE") else " ".join(edit.text.split())
    targets = () if op in ("ADD", "NONE") else tuple(dict.fromkeys(edit.targets))
    least = {"UPDATE": 1, "DELETE": 1, "MERGE": 2}.get(op, 0)
    if len(targets) < least or (op == "UPDATE" and len(targets) > 1):
        raise ValueError(f"{op} needs {'two ids or more' if least == 2 else 'one id'} in targets")
    for target in targets:
        if target not in shown:
            raise ValueError(f"{target!r} is no id of a held item; the ids are {', '.join(sorted(shown)) or '(none)'}")
    if op in ("ADD", "UPDATE", "MERGE") and not text:
        raise ValueError(f"{op} needs a text")
    if (length := word_count(text)) > words:
        raise ValueError(f"a text has {length} words, at most {words} are allowed: {text[:80]!r}")
    return Proposal(op, targets, text, " ".join(edit.reason.split())[:MOST_REASON], (), ())


def check_all(edits: Iterable[ProposedEdit], shown: Collection[str], words: int, limit: int) -> list[Proposal]:
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
    """A batch of proposals, best first, that applies to the pool, and the proposals left out.

    An item is edited once; an ADD of nearly the same text as an item adds its evidence to that item; at most
    `config.add` are new.
    """
    settled: list[Proposal] = []
    left_out: list[LeftOut] = []
    used: set[str] = set()  # ids of items that are edited
    deleted: set[str] = set()
    new = 0
    for given in proposals:
        proposal = _onto_held_item(given, pool, used)
        reason = _conflict(proposal, used, deleted)
        same = [n for n, p in enumerate(settled) if proposal.op == "ADD" and same_words(p.text, proposal.text)]
        is_new = proposal.op == "ADD" and content_hash(proposal.text) not in {item.id for item in pool.items}
        if not reason and not same and is_new and new == config.add:
            reason = f"more than {config.add} new items"
        if reason:
            left_out.append(LeftOut.of(given, reason))
        elif same:
            settled[same[0]] = settled[same[0]].resting_on(proposal.evidence, proposal.tasks)
        else:
            settled.append(proposal)
            new += is_new
            used.update(proposal.targets)
            deleted.update(proposal.targets if proposal.op == "DELETE" else ())
    return settled, left_out


def _onto_held_item(proposal: Proposal, pool: ExperiencePool, used: Collection[str]) -> Proposal:
    """An ADD that says the same as an existing item gets that item's text, so that it adds evidence only."""
    if proposal.op != "ADD":
        return proposal
    held = (item.text for item in pool.items if item.id not in used and same_words(item.text, proposal.text))
    return replace(proposal, text=next(held, proposal.text))


def _conflict(proposal: Proposal, used: Collection[str], deleted: Collection[str]) -> str:
    taken = sorted(set(proposal.targets).intersection(used))
    if taken:
        return f"item {taken[0]} is edited by a stronger proposal"
    if proposal.text and content_hash(proposal.text) in deleted:
        return "its text is deleted by a stronger proposal"
    return ""


def same_words(a: str, b: str) -> bool:
    """Whether two texts use the same words, function words aside; any other word may change the meaning."""
    first, second = (frozenset(words_of(text)) - _SMALL_WORDS for text in (a, b))
    return bool(first) and first == second


def to_edit(proposal: Proposal, held: dict[str, Experience], config: ExtractConfig, source: str, k: int) -> PoolEdit:
    """The pool edit. A new item carries its own evidence and that of the items it replaces."""
    if proposal.op in ("DELETE", "NONE"):
        return PoolEdit(op=proposal.op, targets=proposal.targets, reason=proposal.reason, cause="writer")
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
    return PoolEdit(op=proposal.op, item=item, targets=proposal.targets, reason=proposal.reason, cause="writer")
