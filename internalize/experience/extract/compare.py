"""What the attempts at one task teach, as proposed edits of the pool.

One request asks for the comparison and then the edits, so that the edits follow from the comparison and a task costs
one round trip.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from internalize.records import Experience, Trajectory

from .proposals import Bounds, ComparisonAnswer, Proposal, SummaryAnswer, check_all
from .session import Refused, Session, fenced_data, fitting, gather_all, item_lines
from .transcript import CHARACTERS, clip, outcome, transcript

SUMMARY_WORDS = 160
LEAST_SHARE = 240  # fewest characters of an attempt, however small the model's context
HEADING = 160  # characters of an attempt's heading and fence
POOL_SHARE = 0.4  # of a request's data
WORDS_FROM = 4000  # characters of an attempt that are compared with the pool's items
QUESTION_SHARE = 15  # percent of a request
UNCUT = 1 << 30


async def compare(session: Session, attempts: Sequence[Trajectory]) -> list[Proposal]:
    """Checked edits with these attempts at one task as evidence. Raises as `Session.ask` and `gather` do."""
    config, task = session.config, attempts[0].task_id
    text = partial(session.prompt, "compare", limit=config.per_task, task=_task(session, attempts[0]))
    room = session.room(text(held="", attempts=""))
    items = _most_related(session, attempts, int(room * POOL_SHARE))
    ids, held = {item.id for item in items}, fenced_data(item_lines(items))
    found = await session.ask(
        "compare",
        task,
        text(held=held, attempts=await _attempts(session, attempts, room - len(held))),
        ComparisonAnswer,
        lambda answer: check_all(answer.edits, ids, config.words, config.per_task),
        Bounds(ids, config.per_task),
    )
    evidence = tuple(trajectory.id for trajectory in attempts)
    return [proposal.resting_on(evidence, (task,)) for proposal in found]


async def _attempts(session: Session, attempts: Sequence[Trajectory], room: int) -> str:
    """The attempts as text: whole if they fit together, else those longer than their share are summarized."""
    share = max(LEAST_SHARE, room // len(attempts) - HEADING)
    texts = [transcript(trajectory, UNCUT) for trajectory in attempts]
    if sum(map(len, texts)) > share * len(attempts):
        texts = await gather_all(
            _shortened(session, trajectory, text, share) for trajectory, text in zip(attempts, texts, strict=True)
        )
    return "\n\n".join(
        f"Attempt {number}: {outcome(trajectory)}\n{fenced_data(text)}"
        for number, (trajectory, text) in enumerate(zip(attempts, texts, strict=True), start=1)
    )


async def _shortened(session: Session, trajectory: Trajectory, whole: str, share: int) -> str:
    """An attempt in at most `share` characters: summarized by the model, or cut by code if it refuses."""
    if len(whole) <= share:
        return whole
    words, task = min(SUMMARY_WORDS, share // 7), _task(session, trajectory)
    text = partial(session.prompt, "summary", words=words, task=task, outcome=outcome(trajectory))
    shown = transcript(trajectory, session.room(text(attempt="")) - HEADING)
    try:
        retold = await session.ask(
            "summary", trajectory.id, text(attempt=fenced_data(shown)), SummaryAnswer, lambda answer: answer.text()
        )
    except Refused:  # the cached replies have the reason; the task goes on with a cut
        return transcript(trajectory, share)
    return clip(retold, share)


def _task(session: Session, trajectory: Trajectory) -> str:
    most = session.config.context * QUESTION_SHARE * CHARACTERS // 100
    return fenced_data(clip(trajectory.question, most))


def _most_related(session: Session, attempts: Sequence[Trajectory], room: int) -> list[Experience]:
    """The pool's items that fit, chosen by the words that they share with the attempts."""
    texts = [attempts[0].question, *(transcript(trajectory, WORDS_FROM) for trajectory in attempts)]
    words = {word for text in texts for word in text.lower().split()}
    ranked = sorted(session.pool.items, key=lambda item: -len(words.intersection(item.text.lower().split())))
    return fitting(ranked, session.pool.items, room)
