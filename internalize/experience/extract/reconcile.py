"""All tasks' proposals as one batch of edits that agree and keep the pool within its cap.

    proposals -> screen -> reconcile (one request, more if they do not fit) -> screen -> settle in code
              -> consolidate (one request, only above the cap) -> over_cap in code

Left out: where proposals come from (learn.py). What must not change: a DELETE must have been proposed for the item by
a task; if the model gives no usable answer here, code alone settles the batch and holds the cap.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from internalize.errors import Incomplete, InfrastructureError
from internalize.experience.pool import ExperiencePool
from internalize.records import Experience, PoolEdit

from .proposals import Bounds, Decided, Decisions, Edits, LeftOut, Proposal, check_all, checked, settle
from .session import Refusal, Refused, Work, all_of, data, fitting, listed, shown

UNLIMITED = 1 << 30


@dataclass
class Batch:
    """Proposals on their way, and what fell by the way."""

    proposals: list[Proposal]
    refused: list[Refusal]
    left: list[LeftOut] = field(default_factory=list)


async def agree(work: Work, batch: Batch) -> tuple[PoolEdit, ...]:
    """The edits; refusals and what is left out are added to `batch`. Raises Incomplete when work is left."""
    proposals, flagged = work.screened(batch.proposals)
    batch.left += flagged
    try:
        proposals = await _agreed(work, proposals, batch)
        kept, left = settle(proposals, work.pool, work.config)
        batch.left += left
        edits = work.edits(kept, work.pool)
        edits += await _smaller(work, edits, batch)
    except InfrastructureError as error:
        raise Incomplete(f"the tasks' proposals are not made one batch yet ({error})") from error
    return (*edits, *work.pool.over_cap(edits))


async def _agreed(work: Work, proposals: list[Proposal], batch: Batch) -> list[Proposal]:
    """Proposals of several tasks, reconciled, best first; those of one task agree already."""
    if len({task for proposal in proposals for task in proposal.tasks}) < 2:
        return proposals
    try:
        return await _reconcile(work, proposals, batch)
    except Refused as refused:
        batch.refused.append(refused.refusal)
        return sorted(proposals, key=lambda proposal: -len(proposal.evidence))


async def _reconcile(work: Work, proposals: Sequence[Proposal], batch: Batch) -> list[Proposal]:
    """One request if all fit into it; else one a part, and again while that makes them fewer."""
    parts = _parts(work, proposals)
    agreed = [p for part in await all_of(_reconcile_part(work, part, batch) for part in parts) for p in part]
    if len(parts) > 1 and len(_parts(work, agreed)) < len(parts):
        return await _reconcile(work, agreed, batch)
    return agreed


def _parts(work: Work, proposals: Sequence[Proposal]) -> list[list[Proposal]]:
    room = work.room(_reconcile_prompt(work, "", ""))
    parts: list[list[Proposal]] = [[]]
    size = 0
    for proposal in proposals:
        cost = len(_numbered(100, proposal)) + 2 + len(listed(_concerned(work, [proposal])))
        if parts[-1] and size + cost > room:
            parts.append([])
            size = 0
        parts[-1].append(proposal)
        size += cost
    return parts


async def _reconcile_part(work: Work, proposals: Sequence[Proposal], batch: Batch) -> list[Proposal]:
    concerned = _concerned(work, proposals)
    ids = {item.id for item in concerned}
    lines = "\n".join(_numbered(number, proposal) for number, proposal in enumerate(proposals, start=1))
    found = await work.ask(
        "reconcile",
        f"{len(proposals)} proposals",
        _reconcile_prompt(work, shown(concerned), data(lines)),
        Decisions,
        lambda answer: _decisions(answer.decisions, proposals, ids, work.config.words),
        Bounds(ids, len(proposals)),
    )
    cited = {number for decision in found for number in decision.numbers}
    dropped = [p for number, p in enumerate(proposals, start=1) if number not in cited]
    agreed, flagged = work.screened(decision.proposal for decision in found)
    batch.left += [*(LeftOut.of(p, "dropped when all were reconciled") for p in dropped), *flagged]
    return agreed


def _reconcile_prompt(work: Work, held: str, proposals: str) -> str:
    return work.prompt("reconcile", limit=work.config.add, held=held, proposals=proposals)


def _concerned(work: Work, proposals: Iterable[Proposal]) -> list[Experience]:
    targets = {target for proposal in proposals for target in proposal.targets}
    return [item for item in work.pool.items if item.id in targets]


def _numbered(number: int, proposal: Proposal) -> str:
    tasks = f"{len(proposal.tasks)} task{'s' if len(proposal.tasks) > 1 else ''}"
    targets = f" {' '.join(proposal.targets)}" if proposal.targets else ""
    text = f": {proposal.text}" if proposal.text else ""
    return f"{number}. {proposal.op}{targets}{text} (from {tasks}; {proposal.reason or 'no reason given'})"


@dataclass(frozen=True)
class _Decision:
    """A checked decision, with the numbers of the proposals it stands for."""

    proposal: Proposal
    numbers: tuple[int, ...]


def _decisions(
    decisions: Iterable[Decided], proposals: Sequence[Proposal], ids: Collection[str], words: int
) -> list[_Decision]:
    """Raises ValueError for an unknown or repeated number, an id that was not shown, a DELETE nobody proposed."""
    found: list[_Decision] = []
    seen: set[int] = set()
    for decided in decisions:
        numbers = tuple(dict.fromkeys(decided.proposals))
        unknown = [number for number in numbers if not 1 <= number <= len(proposals)]
        if unknown or not numbers:
            raise ValueError(f"a decision names {unknown or 'no proposals'}; their numbers are 1 to {len(proposals)}")
        if seen.intersection(numbers):
            raise ValueError(f"proposal {min(seen.intersection(numbers))} stands in two decisions")
        seen.update(numbers)
        cited = [proposals[number - 1] for number in numbers]
        proposal = checked(decided, ids, words)
        doomed = {target for one in cited if one.op == "DELETE" for target in one.targets}
        if proposal.op == "DELETE" and not doomed.issuperset(proposal.targets):
            raise ValueError(f"no proposal it names deletes {min(set(proposal.targets) - doomed)}")
        if proposal.op != "NONE":
            for one in cited:
                proposal = proposal.joined(one)
            found.append(_Decision(proposal, numbers))
    return found


async def _smaller(work: Work, edits: Sequence[PoolEdit], batch: Batch) -> list[PoolEdit]:
    """Merges and removals down to the cap; nothing if the pool fits or the model gives no such answer."""
    large = ExperiencePool(work.pool.items, UNLIMITED).apply(edits)
    excess = len(large.items) - work.pool.cap
    if excess <= 0:
        return []

    def text(held: str) -> str:
        return work.prompt("consolidate", excess=excess, held=held)

    weakest = sorted(large.items, key=lambda item: (item.support * item.lift, len(item.evidence)))
    choice = fitting(weakest, large.items, work.room(text("")))
    ids = {item.id for item in choice}
    try:
        found = await work.ask(
            "consolidate",
            f"{len(large.items)} items",
            text(shown(choice)),
            Edits,
            lambda answer: _shrinking(check_all(answer.edits, ids, work.config.words, UNLIMITED), large, excess),
            Bounds(ids, len(ids)),
        )
    except Refused as refused:
        batch.refused.append(refused.refusal)
        return []
    kept, flagged = work.screened(found)
    batch.left += flagged
    return work.edits(kept, large)


def _shrinking(proposals: Sequence[Proposal], large: ExperiencePool, excess: int) -> list[Proposal]:
    """Merges and removals that are enough and no more than asked for. Raises ValueError."""
    found: list[Proposal] = []
    removed = 0
    for proposal in proposals:
        if proposal.op not in ("MERGE", "DELETE"):
            raise ValueError(f"{proposal.op} makes a pool no smaller; use MERGE and DELETE")
        removed += len(proposal.targets) - (proposal.op == "MERGE")
        found.append(replace(proposal, reason=proposal.reason or f"the pool holds {excess} too many"))
    if removed < excess:
        raise ValueError(f"{removed} items fewer, {excess} are needed")
    if removed > max(2 * excess, len(large.items) // 2):
        raise ValueError(f"{removed} items fewer, though {excess} would do")
    return found
