"""Which episodes a report shows: the same task early and late, won and lost alike, and one with experience.

The choice is fixed (the first task of each kind in file order), so that nobody picks the nice ones.
Left out: how they are written. What must not change: a task the policy unlearned is shown whenever
there is one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from internalize.records import Candidate, Record, Stage, Trajectory
from internalize.runs.files import record_of

LEARNED, UNLEARNED = "The same task, learned", "The same task, unlearned"
SAME = "The same task, nothing changed"


@dataclass(frozen=True)
class Entry:
    """Where one scored or unscored episode lies on disk, and what choosing needs of it."""

    path: Path
    offset: int
    task_id: str
    checkpoint: str
    score: float | None
    plain: bool  # no experience was shown
    iteration: int  # updates of the policy that played
    suite: str  # it was measured in, or the split it was learnt from
    folder: int  # iteration in whose folder it lies
    candidate: Candidate

    @staticmethod
    def of(trajectory: Trajectory, path: Path, offset: int, stage: Stage) -> Entry:
        """The entry of a trajectory read from `path` at byte `offset`, played in `stage`."""
        shown = trajectory.global_injection is not None or any(step.injection for step in trajectory.steps)
        return Entry(
            path=path,
            offset=offset,
            task_id=trajectory.task_id,
            checkpoint=trajectory.checkpoint,
            score=trajectory.score,
            plain=stage.mode == "internalized" if stage.mode else not shown,
            iteration=trajectory.iteration,
            suite=stage.suite or trajectory.split,
            folder=stage.iteration,
            candidate=stage.candidate,
        )

    def read(self) -> Trajectory:
        """The episode itself."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return record_of(file.readline(), Trajectory)


class Shown(Record):
    """One episode and the policy that played it; `iteration` None = a checkpoint that was not measured."""

    iteration: int | None
    trajectory: Trajectory


class Sample(Record):
    """Episodes to read side by side, and why these."""

    title: str
    episodes: tuple[Shown, ...]


def pick(entries: Sequence[Entry], measured: Mapping[str, int]) -> tuple[Sample, ...]:
    """Up to three samples; `measured` gives the iteration of each checkpoint that was evaluated."""
    taught = [entry for entry in entries if not entry.plain and entry.score is not None]
    samples = [
        _sample(title, _with_teacher(pair, taught), measured) for title, pair in _pairs(entries, measured).items()
    ]
    best = max(taught, key=lambda entry: entry.score or 0.0, default=None)  # the first of the best
    shown = {id(entry) for _, pair in _pairs(entries, measured).items() for entry in _with_teacher(pair, taught)}
    if best is not None and id(best) not in shown:
        samples.append(_sample("With experience in the prompt (the teacher)", (best,), measured))
    return tuple(samples)


def _pairs(entries: Sequence[Entry], measured: Mapping[str, int]) -> dict[str, tuple[Entry, ...]]:
    """The first task won and the first task lost between its earliest and latest policy, or else any pair."""
    tasks: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.plain and entry.score is not None and entry.checkpoint in measured:
            tasks.setdefault(entry.task_id, []).append(entry)
    found: dict[str, tuple[Entry, ...]] = {}
    for episodes in tasks.values():
        early = min(episodes, key=lambda entry: measured[entry.checkpoint])
        late = max(episodes, key=lambda entry: measured[entry.checkpoint])
        if early.checkpoint != late.checkpoint:
            found.setdefault(_kind(early.score or 0.0, late.score or 0.0), (early, late))
    changed = {title: found[title] for title in (LEARNED, UNLEARNED) if title in found}
    return changed or found or _any_plain(entries)


def _with_teacher(pair: tuple[Entry, ...], taught: Sequence[Entry]) -> tuple[Entry, ...]:
    """The pair with the first best episode of the same task that had experience in its prompt between the two."""
    same = [entry for entry in taught if entry.task_id == pair[0].task_id]
    best = max(same, key=lambda entry: entry.score or 0.0, default=None)
    return pair if best is None else (pair[0], best, *pair[1:])


def _kind(early: float, late: float) -> str:
    if late > early:
        return LEARNED
    return UNLEARNED if late < early else SAME


def _any_plain(entries: Sequence[Entry]) -> dict[str, tuple[Entry, ...]]:
    first = next((entry for entry in entries if entry.plain and entry.score is not None), None)
    return {"An episode without experience": (first,)} if first else {}


def _sample(title: str, entries: Sequence[Entry], measured: Mapping[str, int]) -> Sample:
    shown = [Shown(iteration=measured.get(entry.checkpoint), trajectory=entry.read()) for entry in entries]
    return Sample(title=title, episodes=tuple(shown))
