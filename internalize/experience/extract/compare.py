"""One task: its attempts, whole or summarized, and what they teach as edits of the pool.

Comparison and edits are one request: the answer holds the comparison first, so the edits are drawn from it, and a
task costs one round trip. Left out: other tasks (agree.py). What must not change: an attempt that does not fit whole
is summarized from a transcript that says what was cut; only ids that were shown count.
"""

from __future__ import annotations

from collections.abc import Sequence

from internalize.records import Experience, Trajectory

from .proposals import Bounds, Learnt, Proposal, Summary, check_all
from .session import Refused, Work, all_of, data, fitting, shown
from .transcript import CHARACTERS, clip, outcome, transcript

SUMMARY_WORDS = 160
LEAST_SHARE = 240  # characters of an attempt, however small the model's context
HEADING = 160  # characters of an attempt's heading and fence
POOL_SHARE = 0.4  # of a request's data
WORDS_FROM = 4000  # characters of an attempt that held items are compared with
QUESTION_SHARE = 15  # percent of a request
UNCUT = 1 << 30


async def learn(work: Work, attempts: Sequence[Trajectory]) -> list[Proposal]:
    """Checked edits that rest on these attempts at one task. Raises as `Work.ask` and `together` do."""
    config, task = work.config, attempts[0].task_id

    def text(held: str, tried: str) -> str:
        return work.prompt("learn", limit=config.per_task, task=_asked(work, attempts[0]), held=held, attempts=tried)

    room = work.room(text("", ""))
    held = _relevant(work, attempts, int(room * POOL_SHARE))
    listed = shown(held)
    ids = {item.id for item in held}
    found = await work.ask(
        "learn",
        task,
        text(listed, await _attempts(work, attempts, room - len(listed))),
        Learnt,
        lambda answer: check_all(answer.edits, ids, config.words, config.per_task),
        Bounds(ids, config.per_task),
    )
    basis = Proposal("NONE", (), "", "", tuple(t.id for t in attempts), (task,))
    return [proposal.joined(basis) for proposal in found]


async def _attempts(work: Work, attempts: Sequence[Trajectory], room: int) -> str:
    """Whole where they fit together; else those longer than their share are summarized."""
    share = max(LEAST_SHARE, room // len(attempts) - HEADING)
    texts = [transcript(trajectory, UNCUT) for trajectory in attempts]
    if sum(map(len, texts)) > share * len(attempts):
        texts = await all_of(
            _short(work, trajectory, text, share) for trajectory, text in zip(attempts, texts, strict=True)
        )
    return "\n\n".join(
        f"Attempt {number}: {outcome(trajectory)}\n{data(text)}"
        for number, (trajectory, text) in enumerate(zip(attempts, texts, strict=True), start=1)
    )


async def _short(work: Work, trajectory: Trajectory, whole: str, share: int) -> str:
    """An attempt in at most `share` characters, retold by the model if it has to be; cut by code if that will not."""
    if len(whole) <= share:
        return whole
    words = min(SUMMARY_WORDS, share // 7)

    def text(attempt: str) -> str:
        asked = _asked(work, trajectory)
        return work.prompt("summary", words=words, task=asked, outcome=outcome(trajectory), attempt=attempt)

    question = text(data(transcript(trajectory, work.room(text("")) - HEADING)))
    try:
        return clip(await work.ask("summary", trajectory.id, question, Summary, _retold), share)
    except Refused:  # it stands in the ledger; a task is not lost for it
        return transcript(trajectory, share)


def _asked(work: Work, trajectory: Trajectory) -> str:
    return data(clip(trajectory.question, work.config.context * QUESTION_SHARE * CHARACTERS // 100))


def _retold(answer: Summary) -> str:
    if not answer.summary.strip():
        raise ValueError("the summary is empty")
    return answer.summary.strip()


def _relevant(work: Work, attempts: Sequence[Trajectory], room: int) -> list[Experience]:
    """The held items that fit, those that share most words with the attempts first chosen."""
    texts = [attempts[0].question, *(transcript(t, WORDS_FROM) for t in attempts)]
    seen = {word for text in texts for word in text.lower().split()}
    ranked = sorted(work.pool.items, key=lambda item: -len(seen.intersection(item.text.lower().split())))
    return fitting(ranked, work.pool.items, room)
