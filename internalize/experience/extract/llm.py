"""Experience written by a language model: what each task's attempts teach, made one batch of edits within the cap.

    trajectories -> groups by task -> learn (summaries, then comparison and edits) -> agree (reconcile, consolidate)

Tasks are asked about all at once; the chat model limits how many requests are out. An outage or a spent budget leaves
work owed (Incomplete, after all else is done), never a smaller update. An answer that stays unusable is a refusal: its
task teaches nothing. When more than half of the tasks refuse, the extraction stops as Incomplete once; the resumed
one asks those again, warmer, and then goes on with what there is and a warning, for it would never end otherwise.
Left out: which tasks may be learnt from (stages.py). What must not change: unscored trajectories never enter
(invariant 9); counts, ids, words and the cap are enforced in code, whatever the model says.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from internalize.config.schema import ExtractConfig
from internalize.errors import Incomplete
from internalize.experience.pool import ExperiencePool
from internalize.interfaces import ChatModel
from internalize.records import PoolEdit, Record, Trajectory
from internalize.runs.store import write_json

from .compare import learn
from .injection_filter import Screen
from .proposals import LeftOut, Proposal
from .reconcile import Batch, agree
from .request_log import Ledger
from .session import Refusal, Refused, Work, together

Progress = Callable[[int, int], None]  # tasks done, tasks in all
MOST_REFUSED = 0.5  # share of tasks that may refuse before the extraction stops
_LOG = logging.getLogger(__name__)


class Extraction(Record):
    """extraction.json: what one extraction did."""

    writer: str
    trajectories: int
    unscored: int
    tasks: int
    groups: int  # tasks that were learnt from
    requests: int  # answers in the ledger
    prompt_tokens: int
    completion_tokens: int
    proposals: int
    edits: int
    refused: tuple[Refusal, ...] = ()
    left_out: tuple[LeftOut, ...] = ()


async def write(  # noqa: PLR0913 - what there is to learn from, who writes, and where it is kept
    trajectories: Sequence[Trajectory],
    pool: ExperiencePool,
    config: ExtractConfig,
    chat: ChatModel,
    iteration: int,
    *,
    ledger: Path,
    barred: frozenset[str] = frozenset(),
    progress: Progress | None = None,
) -> tuple[PoolEdit, ...]:
    """The edits that these trajectories suggest, those that keep the pool within its cap included.

    No item whose id is in `barred` is written. `ledger` (JSON Lines) keeps every answer; beside it, with the suffix
    .json, an `Extraction` is written. Raises Incomplete when an outage or a spent budget leaves work, or (once) when
    most tasks refused.
    """
    scored = [t for t in trajectories if t.score is not None]
    book = Ledger.open(ledger, chat)
    work = Work(pool, config, book, Screen.over(scored, barred), iteration)
    groups = group(scored, config)
    if scored and not groups:
        _LOG.warning("nothing to learn from: no task's attempts ended differently; extract.groups=all takes every task")
    batch = await _learn_all(work, groups, progress)
    _stop_if_refused(batch.refused, len(groups), book)
    proposed = len(batch.proposals)
    edits = await agree(work, batch)
    record = Extraction(
        writer=chat.name,
        trajectories=len(trajectories),
        unscored=len(trajectories) - len(scored),
        tasks=len({t.task_id for t in scored}),
        groups=len(groups),
        requests=len(book.requests),
        prompt_tokens=sum(reply.prompt_tokens for reply in book.requests),
        completion_tokens=sum(reply.completion_tokens for reply in book.requests),
        proposals=proposed,
        edits=len(edits),
        refused=tuple(batch.refused),
        left_out=tuple(batch.left),
    )
    write_json(ledger.with_suffix(".json"), record)
    return edits


def group(scored: Iterable[Trajectory], config: ExtractConfig) -> list[list[Trajectory]]:
    """Attempts by task, in order of first appearance; by default only of tasks whose attempts ended differently."""
    found: defaultdict[str, list[Trajectory]] = defaultdict(list)
    for trajectory in scored:
        found[trajectory.task_id].append(trajectory)
    return [g for g in found.values() if config.groups == "all" or len({t.score for t in g}) > 1]


async def _learn_all(work: Work, groups: Sequence[Sequence[Trajectory]], progress: Progress | None) -> Batch:
    """All tasks at once. Raises Incomplete, after every task has got as far as it could, when work is left."""
    done = 0

    async def one(attempts: Sequence[Trajectory]) -> list[Proposal]:
        nonlocal done
        try:
            return await learn(work, attempts)
        finally:
            done += 1
            if progress:
                progress(done, len(groups))

    found = await together(one(attempts) for attempts in groups)
    proposals = [proposal for task in found if not isinstance(task, Refused) for proposal in task]
    return Batch(proposals, [task.refusal for task in found if isinstance(task, Refused)])


def _stop_if_refused(refused: Sequence[Refusal], groups: int, book: Ledger) -> None:
    """More than half refused: stop once, and say it aloud the second time."""
    if len(refused) <= MOST_REFUSED * groups:
        return
    said = f"{book.chat.name} gave no usable answer for {len(refused)} of {groups} tasks ({refused[0].reason[:160]})"
    if book.rounds:
        _LOG.warning("%s; the other tasks alone edit the pool", said)
        return
    book.ask_again()
    raise Incomplete(f"{said}; they will be asked about once more")
