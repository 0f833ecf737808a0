"""Locates the episodes of a run, counts their costs, and chooses which of them a report shows.

The choice is fixed (the first task won and the first lost between the earliest and the latest policy, in file order),
so that nobody picks favourable ones, and a task that the policy unlearned is shown whenever there is one. Episodes are
read in one pass and not kept, because their files grow large.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.metrics import SuiteMetrics
from internalize.experience.lint import Names
from internalize.records import Injection, Record, Stage, Step, Trajectory
from internalize.runs import names
from internalize.runs.files import record_of
from internalize.runs.readers import records_at

from .costs import Costs
from .page import Episode, Line
from .text import plain, policy_name

LEARNED, UNLEARNED = "The same task, learned", "The same task, unlearned"
SAME = "The same task, nothing changed"


@dataclass(frozen=True)
class Entry:
    """The place of one episode on disk, and the fields that the choice needs."""

    path: Path
    offset: int
    stage: Stage
    task_id: str
    checkpoint: str
    score: float | None
    plain: bool  # no experience was shown
    iteration: int  # updates of the acting policy
    suite: str  # the suite, or for learning the split

    def read(self) -> Trajectory:
        """The episode itself."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return record_of(file.readline(), Trajectory)


@dataclass
class EpisodeFiles:
    """All episodes of a run."""

    costs: dict[int, Costs] = field(default_factory=dict)  # by iteration
    entries: list[Entry] = field(default_factory=list)
    names: Names = field(default_factory=Names)

    def behaviour(self, line: SuiteMetrics) -> Behaviour:
        """The behaviour in the episodes of a line, read again, because version 1 did not store it."""
        key = (line.iteration, line.checkpoint, line.suite)
        found = [e.read() for e in self.entries if (e.iteration, e.checkpoint, e.suite) == key]
        return Behaviour.of_all(t for t in found if t.pool_version == line.pool_version)


def read_episodes(folders: Mapping[int, Path], suites: Iterable[str]) -> EpisodeFiles:
    """Read every file of episodes in the folders of the iterations; `suites` are all that the run measures."""
    found = EpisodeFiles()
    for k, folder in folders.items():
        costs = []
        for stage in (*names.learning(folder, k), *names.measuring(folder, k, suites)):
            path = folder / names.episodes(stage)
            for offset, trajectory in records_at(path, Trajectory):
                costs.append(Costs.of(trajectory, measuring=stage.kind == "episodes"))
                found.entries.append(_entry(trajectory, path, offset, stage))
                found.names.add(trajectory)
        found.costs[k] = Costs.total(costs)
    return found


def _entry(trajectory: Trajectory, path: Path, offset: int, stage: Stage) -> Entry:
    return Entry(
        path=path,
        offset=offset,
        stage=stage,
        task_id=trajectory.task_id,
        checkpoint=trajectory.checkpoint,
        score=trajectory.score,
        plain=stage.mode == "internalized" if stage.mode else not _was_shown(trajectory),
        iteration=trajectory.iteration,
        suite=stage.suite or trajectory.split,
    )


def _was_shown(trajectory: Trajectory) -> bool:
    return trajectory.global_injection is not None or any(step.injection for step in trajectory.steps)


class Shown(Record):
    """One episode and the policy that played it; `iteration` None = a checkpoint that was not measured."""

    iteration: int | None
    trajectory: Trajectory

    @property
    def column(self) -> Episode:
        """The episode as a page shows it."""
        who = "another checkpoint" if self.iteration is None else policy_name(self.iteration)
        return column(self.trajectory, f"{who}, with experience" if _was_shown(self.trajectory) else who)


def column(trajectory: Trajectory, title: str) -> Episode:
    """An episode as a page shows it."""
    score = "unscored" if trajectory.score is None else f"score {trajectory.score:g}"
    steps = [_lines(step) for step in trajectory.steps] or [()]
    steps[0] = (*_experience(trajectory.global_injection, 1200), *steps[0])
    further = f", {len(trajectory.branches)} further conversations" if trajectory.branches else ""
    return Episode(
        title=title,
        outcome=f"{score}, {len(trajectory.steps)} steps{further}, {trajectory.termination.replace('_', ' ')}",
        won=trajectory.score == 1.0,
        steps=tuple(steps),
    )


def _lines(step: Step) -> tuple[Line, ...]:
    seen = () if step.observation is None else (Line("result", plain(step.observation, 800)),)
    acted = Line("action" if step.calls else "invalid", plain(step.text, 600))
    return (*_experience(step.injection, 800), acted, *seen)


def _experience(shown: Injection | None, limit: int) -> tuple[Line, ...]:
    if shown is None or not shown.item_ids:
        return ()
    note = f"experience {', '.join(shown.item_ids)}, chosen by {shown.served_by}"
    return (Line("experience", plain(shown.text, limit), note),)


class Sample(Record):
    """Episodes to read side by side, and the reason for the choice."""

    title: str
    episodes: tuple[Shown, ...]


def pick(entries: Sequence[Entry], measured: Mapping[str, int]) -> tuple[Sample, ...]:
    """Up to three samples; `measured` gives the iteration of each checkpoint that was evaluated."""
    taught = [entry for entry in entries if not entry.plain and entry.score is not None]
    found = {title: _with_teacher(pair, taught) for title, pair in _pairs(entries, measured).items()}
    best = max(taught, key=lambda entry: entry.score or 0.0, default=None)  # the first of the best
    if best is not None and not any(best is entry for shown in found.values() for entry in shown):
        found["With experience in the prompt (the teacher)"] = (best,)
    return tuple(
        Sample(
            title=title,
            episodes=tuple(Shown(iteration=measured.get(e.checkpoint), trajectory=e.read()) for e in shown),
        )
        for title, shown in found.items()
    )


def _pairs(entries: Sequence[Entry], measured: Mapping[str, int]) -> dict[str, tuple[Entry, ...]]:
    """The first task won and the first task lost between its earliest and latest policy, or else any pair."""
    scored = [entry for entry in entries if entry.plain and entry.score is not None]
    tasks: dict[str, list[Entry]] = {}
    for entry in scored:
        if entry.checkpoint in measured:
            tasks.setdefault(entry.task_id, []).append(entry)
    found: dict[str, tuple[Entry, ...]] = {}
    for episodes in tasks.values():
        early = min(episodes, key=lambda entry: measured[entry.checkpoint])
        late = max(episodes, key=lambda entry: measured[entry.checkpoint])
        if early.checkpoint != late.checkpoint:
            change = (late.score or 0.0) - (early.score or 0.0)
            found.setdefault(LEARNED if change > 0 else UNLEARNED if change < 0 else SAME, (early, late))
    changed = {title: found[title] for title in (LEARNED, UNLEARNED) if title in found}
    return changed or found or ({"An episode without experience": (scored[0],)} if scored else {})


def _with_teacher(pair: tuple[Entry, ...], taught: Sequence[Entry]) -> tuple[Entry, ...]:
    """The pair, with the first best episode of the same task with experience in its prompt in between."""
    same = [entry for entry in taught if entry.task_id == pair[0].task_id]
    best = max(same, key=lambda entry: entry.score or 0.0, default=None)
    return pair if best is None else (pair[0], best, *pair[1:])
