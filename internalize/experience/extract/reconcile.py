"""Turns the proposals of all tasks into one batch of edits that agree and keep the pool within its cap.

    proposals -> filter -> reconcile (one request, more if they do not fit) -> filter -> settle in code
              -> consolidate (one request, only above the cap) -> over_cap in code

Only an item whose DELETE a task proposed may be deleted. If the model gives no usable answer, code alone settles the
batch and holds the cap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from internalize.errors import Incomplete, InfrastructureError
from internalize.experience.pool import ExperiencePool
from internalize.records import Experience, PoolEdit

from .proposals import (
    Bounds,
    ConsolidationAnswer,
    Decision,
    LeftOut,
    Proposal,
    ReconciliationAnswer,
    check_all,
    checked,
    settle,
    to_edit,
)
from .session import Refusal, Refused, Session, fenced_data, fitting, gather_all, item_lines

UNLIMITED = 1 << 30


@dataclass
class Batch:
    """The proposals of all tasks, the refused questions, and the proposals that did not become edits."""

    proposals: list[Proposal]
    refused: list[Refusal]
    left_out: list[LeftOut] = field(default_factory=list)


async def reconcile(session: Session, batch: Batch) -> tuple[PoolEdit, ...]:
    """The edits. Refusals and left-out proposals are added to `batch`. Raises Incomplete when work is left."""
    proposals = _filtered(session, batch.proposals, batch)
    try:
        if len({task for proposal in proposals for task in proposal.tasks}) > 1:  # proposals of one task agree already
            proposals = await _reconciled(session, proposals, batch)
        settled, left_out = settle(proposals, session.pool, session.config)
        settled = _filtered(session, settled, batch)  # reconciling may have changed texts
        batch.left_out += left_out
        edits = _edits(session, settled, session.pool)
        edits += await _consolidated(session, edits, batch)
    except InfrastructureError as error:
        raise Incomplete(f"the tasks' proposals are not made one batch yet ({error})") from error
    return (*edits, *session.pool.over_cap(edits))


def _filtered(session: Session, proposals: Iterable[Proposal], batch: Batch) -> list[Proposal]:
    """Proposals that pass the filter; the others are recorded in the batch."""
    passed = []
    for proposal in proposals:
        reason = session.filter.problem(proposal.text, session.config.granularity) if proposal.text else ""
        if proposal.targets:
            reason = reason or session.filter.change_problem(proposal.evidence)
        elif 0 < len(seen := session.origins_of(proposal.evidence)) < session.config.independent:
            reason = reason or f"rests on {len(seen)} of {session.config.independent} origins ({seen[0][:80]})"
        if reason:
            batch.left_out.append(LeftOut.of(proposal, reason))
        else:
            passed.append(proposal)
    return passed


def _edits(session: Session, proposals: Iterable[Proposal], pool: ExperiencePool) -> list[PoolEdit]:
    held = {item.id: item for item in pool.items}
    edits = [to_edit(p, held, session.config, session.chat.name, session.iteration) for p in proposals]
    return [_with_origins(session, edit) for edit in edits]


def _with_origins(session: Session, edit: PoolEdit) -> PoolEdit:
    if edit.item is None:
        return edit
    item = edit.item.model_copy(update={"origins": session.origins_of(edit.item.evidence)})
    return edit.model_copy(update={"item": item})


async def _reconciled(session: Session, proposals: Sequence[Proposal], batch: Batch) -> list[Proposal]:
    """Proposals that agree, best first: one request if all fit, else one a part, repeated while parts get fewer."""
    parts = _parts(session, proposals)
    try:
        agreed = [p for part in await gather_all(_reconciled_part(session, p, batch) for p in parts) for p in part]
    except Refused as refused:
        batch.refused.append(refused.refusal)
        return sorted(proposals, key=lambda proposal: -len(proposal.evidence))
    if len(parts) > len(_parts(session, agreed)):
        return await _reconciled(session, agreed, batch)
    return agreed


def _parts(session: Session, proposals: Sequence[Proposal]) -> list[list[Proposal]]:
    """Consecutive proposals that fit into one request together."""
    room = session.room(_prompt(session, "", ""))
    parts: list[list[Proposal]] = [[]]
    size = 0
    for proposal in proposals:
        cost = len(_numbered(100, proposal)) + 2 + len(item_lines(_concerned(session, [proposal])))
        if parts[-1] and size + cost > room:
            parts.append([])
            size = 0
        parts[-1].append(proposal)
        size += cost
    return parts


async def _reconciled_part(session: Session, proposals: Sequence[Proposal], batch: Batch) -> list[Proposal]:
    concerned = _concerned(session, proposals)
    ids = {item.id for item in concerned}
    lines = "\n".join(_numbered(number, proposal) for number, proposal in enumerate(proposals, start=1))
    decided = await session.ask(
        "reconcile",
        f"{len(proposals)} proposals",
        _prompt(session, fenced_data(item_lines(concerned)), fenced_data(lines)),
        ReconciliationAnswer,
        lambda answer: _check_decisions(answer.decisions, proposals, ids, session.config.words),
        Bounds(ids, len(proposals)),
    )
    cited = {number for _, numbers in decided for number in numbers}
    for number, proposal in enumerate(proposals, start=1):
        if number not in cited:
            batch.left_out.append(LeftOut.of(proposal, "dropped when all were reconciled"))
    return _filtered(session, (proposal for proposal, _ in decided), batch)


def _prompt(session: Session, held: str, proposals: str) -> str:
    return session.prompt("reconcile", limit=session.config.add, held=held, proposals=proposals)


def _concerned(session: Session, proposals: Iterable[Proposal]) -> list[Experience]:
    targets = {target for proposal in proposals for target in proposal.targets}
    return [item for item in session.pool.items if item.id in targets]


def _numbered(number: int, proposal: Proposal) -> str:
    tasks = f"{len(proposal.tasks)} task{'s' if len(proposal.tasks) > 1 else ''}"
    targets = f" {' '.join(proposal.targets)}" if proposal.targets else ""
    text = f": {proposal.text}" if proposal.text else ""
    return f"{number}. {proposal.op}{targets}{text} (from {tasks}; {proposal.reason or 'no reason given'})"


def _check_decisions(
    decisions: Iterable[Decision], proposals: Sequence[Proposal], ids: Collection[str], words: int
) -> list[tuple[Proposal, tuple[int, ...]]]:
    """The decisions, each with the numbers of its proposals, without those that change nothing.

    Raises ValueError for an unknown or repeated number, an id that was not shown, a DELETE nobody proposed.
    """
    found: list[tuple[Proposal, tuple[int, ...]]] = []
    used: set[int] = set()
    for decision in decisions:
        numbers = tuple(dict.fromkeys(decision.proposals))
        unknown = [number for number in numbers if not 1 <= number <= len(proposals)]
        if unknown or not numbers:
            raise ValueError(f"a decision names {unknown or 'no proposals'}; their numbers are 1 to {len(proposals)}")
        if used.intersection(numbers):
            raise ValueError(f"proposal {min(used.intersection(numbers))} stands in two decisions")
        used.update(numbers)
        cited = [proposals[number - 1] for number in numbers]
        proposal = checked(decision, ids, words)
        doomed = {target for one in cited if one.op == "DELETE" for target in one.targets}
        if proposal.op == "DELETE" and not doomed.issuperset(proposal.targets):
            raise ValueError(f"no proposal it names deletes {min(set(proposal.targets) - doomed)}")
        if proposal.op != "NONE":
            for one in cited:
                proposal = proposal.resting_on(one.evidence, one.tasks)
            found.append((proposal, numbers))
    return found


async def _consolidated(session: Session, edits: Sequence[PoolEdit], batch: Batch) -> list[PoolEdit]:
    """Merges and removals down to the cap; none if the pool fits or the model gives no usable answer."""
    large = ExperiencePool(session.pool.items, UNLIMITED).apply(edits)
    excess = len(large.items) - session.pool.cap
    if excess <= 0:
        return []
    room = session.room(session.prompt("consolidate", excess=excess, held=""))
    weakest = sorted(large.items, key=lambda item: (item.support * item.lift, len(item.evidence)))
    shown = fitting(weakest, large.items, room)
    ids = {item.id for item in shown}
    try:
        proposals = await session.ask(
            "consolidate",
            f"{len(large.items)} items",
            session.prompt("consolidate", excess=excess, held=fenced_data(item_lines(shown))),
            ConsolidationAnswer,
            lambda answer: _check_removals(
                check_all(answer.edits, ids, session.config.words, UNLIMITED), len(large.items), excess
            ),
            Bounds(ids, len(ids)),
        )
    except Refused as refused:
        batch.refused.append(refused.refusal)
        return []
    return _edits(session, _filtered(session, proposals, batch), large)


def _check_removals(proposals: Sequence[Proposal], size: int, excess: int) -> list[Proposal]:
    """The edits, if they remove enough items and not far too many. Raises ValueError."""
    removed = 0
    for proposal in proposals:
        if proposal.op not in ("MERGE", "DELETE"):
            raise ValueError(f"{proposal.op} makes a pool no smaller; use MERGE and DELETE")
        removed += len(proposal.targets) - (proposal.op == "MERGE")
    if removed < excess:
        raise ValueError(f"{removed} items fewer, {excess} are needed")
    if removed > max(2 * excess, size // 2):
        raise ValueError(f"{removed} items fewer, though {excess} would do")
    return [replace(p, reason=p.reason or f"the pool holds {excess} too many") for p in proposals]
