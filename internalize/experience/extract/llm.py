"""Experience written by a language model: what each task's attempts teach, made one batch of edits within the cap.

    trajectories -> groups by task -> compare (summaries, then comparison and edits) -> reconcile (and consolidate)

All tasks are asked about concurrently; the chat model limits the requests under way. After an outage or a spent budget
the extraction finishes the other tasks and raises Incomplete; it never makes a smaller update. A task without usable
answers is refused and teaches nothing. If more than half of the tasks are refused, the extraction raises Incomplete
once. The resumed one retries these at a higher temperature, then warns and uses what there is, so that it ends.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from internalize.config.schema import ExtractConfig
from internalize.errors import Incomplete
from internalize.inference.cached import CachedChat
from internalize.interfaces import ChatModel
from internalize.records import PoolEdit, Record, Trajectory
from internalize.runs.store import write_json, write_jsonl

from .compare import compare
from .injection_filter import InjectionFilter
from .proposals import LeftOut, Proposal
from .provenance import origins
from .reconcile import Batch, reconcile
from .session import ExtractionInput, Refusal, Refused, Session, gather

Progress = Callable[[int, int], None]  # tasks done, tasks in all
MOST_REFUSED = 0.5  # share of refused tasks beyond which the extraction stops
_LOG = logging.getLogger(__name__)


class Extraction(Record):
    """extraction.json: what one extraction did."""

    writer: str
    trajectories: int
    unscored: int
    tasks: int
    groups: int  # tasks whose attempts were compared
    requests: int  # answered requests
    prompt_tokens: int
    completion_tokens: int
    proposals: int
    edits: int
    refused: tuple[Refusal, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


async def write(
    seen: ExtractionInput, config: ExtractConfig, chat: ChatModel, replies: Path, progress: Progress | None = None
) -> tuple[PoolEdit, ...]:
    """The edits that the trajectories suggest, including those that keep the pool within its cap.

    `replies` (JSON Lines) keeps every reply, so that the same call can resume. Beside it are an `Extraction` (.json)
    and, once most tasks were refused, the refusals (.refused.jsonl). Raises Incomplete when an outage or a spent budget
    leaves work, or (once) when most tasks were refused.
    """
    scored = [trajectory for trajectory in seen.trajectories if trajectory.score is not None]
    cached = CachedChat(chat, replies, checkpoint=seen.checkpoint, replay_rejected=True)
    refusals = replies.with_suffix(".refused.jsonl")
    filtering = InjectionFilter.of(scored, seen.barred)
    saw = {trajectory.id: origins([trajectory]) for trajectory in scored}
    session = Session(seen.pool, config, cached, filtering, seen.iteration, retries=refusals.exists(), origins=saw)
    groups = group(scored, config)
    if scored and not groups:
        _LOG.warning("nothing to learn from: no task's attempts ended differently; extract.groups=all takes every task")
    batch = await _compare_all(session, groups, progress)
    if len(batch.refused) > MOST_REFUSED * len(groups):
        _stop_once(session, batch.refused, len(groups), refusals)
    proposed = len(batch.proposals)
    edits = await reconcile(session, batch)
    record = Extraction(
        writer=chat.name,
        trajectories=len(seen.trajectories),
        unscored=len(seen.trajectories) - len(scored),
        tasks=len({trajectory.task_id for trajectory in scored}),
        groups=len(groups),
        requests=len(cached.replies),
        prompt_tokens=sum(reply.prompt_tokens for reply in cached.replies),
        completion_tokens=sum(reply.completion_tokens for reply in cached.replies),
        proposals=proposed,
        edits=len(edits),
        refused=tuple(batch.refused),
        left_out=tuple(batch.left_out),
    )
    write_json(replies.with_suffix(".json"), record)
    return edits


def group(scored: Iterable[Trajectory], config: ExtractConfig) -> list[list[Trajectory]]:
    """Attempts by task, in order of first appearance; by default only of tasks whose attempts ended differently."""
    found: defaultdict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in scored:
        found[trajectory.task_id].append(trajectory)
    return [g for g in found.values() if config.groups == "all" or len({t.score for t in g}) > 1]


async def _compare_all(session: Session, groups: Sequence[Sequence[Trajectory]], progress: Progress | None) -> Batch:
    """Compare all tasks concurrently. Raises Incomplete, after every task has ended, if work is left."""
    done = 0

    async def one(attempts: Sequence[Trajectory]) -> list[Proposal]:
        nonlocal done
        try:
            return await compare(session, attempts)
        finally:
            done += 1
            if progress:
                progress(done, len(groups))

    found = await gather(one(attempts) for attempts in groups)
    proposals = [proposal for task in found if not isinstance(task, Refused) for proposal in task]
    return Batch(proposals, [task.refusal for task in found if isinstance(task, Refused)])


def _stop_once(session: Session, refused: Sequence[Refusal], groups: int, refusals: Path) -> None:
    """Raise Incomplete the first time, warn the second time."""
    told = f"{session.chat.name} gave no usable answer for {len(refused)} of {groups} tasks ({refused[0].reason[:160]})"
    if session.retries:
        _LOG.warning("%s; the other tasks alone edit the pool", told)
        return
    write_jsonl(refusals, refused)
    raise Incomplete(f"{told}; they will be asked about once more")
