"""Reads logs, counts their content, and reports what a training would use."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from internalize.errors import DataError, UserError
from internalize.inference.token_estimate import estimated_tokens
from internalize.records import Trajectory

from .reading import Session, episodes
from .recognition import FORMATS, named, recognized

_ENDINGS = frozenset({".json", ".jsonl", ".eval", ".traj", ".ndjson"})


@dataclass
class Survey:
    """Counts of one reading, complete when its trajectories have been taken."""

    session: Session
    formats: Counter[str] = field(default_factory=Counter)  # files
    outcomes: dict[str, set[bool]] = field(default_factory=lambda: defaultdict(set))  # scored 1.0 or less, by task
    left_out: Counter[str] = field(default_factory=Counter)
    episodes: int = 0
    scored: int = 0
    total: float = 0.0
    steps: int = 0
    calls: int = 0
    without_call: int = 0
    learnt: Counter[str] = field(default_factory=Counter)  # in episodes with score 1.0

    def trajectories(self, paths: Sequence[Path], kind: str) -> Iterator[Trajectory]:
        """The episodes of all files, one at a time; ids must differ among all of them. Raises UserError, DataError."""
        for path, name in self._files(paths, kind):
            self.formats[name] += 1
            found = named(name)
            for trajectory in episodes(path, found.values, found.read, self.session):
                self._count(trajectory)
                yield trajectory
        if not self.episodes:
            raise DataError(f"{', '.join(map(str, paths))}: no episode in it{self._why()}")

    def _files(self, paths: Sequence[Path], kind: str) -> Iterator[tuple[Path, str]]:
        """Each file and its format; in a folder, files in no known format are left out and counted."""
        for path in paths:
            if not path.is_dir():
                yield path, recognized(path) if kind == "auto" else kind
                continue
            for file in sorted(f for f in path.rglob("*") if f.suffix in _ENDINGS and f.is_file()):
                try:
                    name = recognized(file)
                except UserError:
                    self.session.notes.dropped["file in no known format"] += 1
                    continue
                if kind in {"auto", name}:
                    yield file, name

    def _count(self, trajectory: Trajectory) -> None:
        self.episodes += 1
        if trajectory.score is not None:
            self.scored += 1
            self.total += trajectory.score
            self.outcomes[trajectory.task_id].add(trajectory.score == 1.0)
        else:
            self.outcomes[trajectory.task_id] |= set()
        self.steps += len(trajectory.steps)
        self.calls += sum(len(step.calls) for step in trajectory.steps)
        self.without_call += sum(not (step.calls or step.ended) for step in trajectory.steps)
        self.left_out.update(step.left_out for step in trajectory.steps if step.left_out)
        turns = [step for step in trajectory.steps if not step.left_out]
        if trajectory.score == 1.0 and turns:
            tokens = sum(estimated_tokens(step.text) for step in turns)
            self.learnt.update({"episodes": 1, "turns": len(turns), "tokens": tokens})

    def summary(self) -> str:
        """One line: the number of episodes and of successes."""
        success = f"success {self.total / self.scored:.1%}" if self.scored else "nothing scored"
        return (
            f"{self.episodes} trajectories of {len(self.outcomes)} tasks, {self.episodes - self.scored} unscored, "
            f"{success}; {self.steps} steps, {self.without_call} without a call"
        )

    def details(self) -> Iterator[str]:
        """A line each: the formats, the calls, what was repaired, dropped and left out of training, with reasons."""
        files = ", ".join(f"{count} {name} ({FORMATS[name].about})" for name, count in self.formats.items())
        yield f"  files: {files}; {self.calls} calls"
        notes = self.session.notes
        for title, counts in (
            ("repaired", notes.repaired), ("dropped", notes.dropped), ("turns that no training learns", self.left_out),
        ):  # fmt: skip
            yield from _listed(title, counts)

    def use(self) -> Iterator[str]:
        """What extraction and a training on episodes with score 1.0 would use."""
        both = sum(len(found) == 2 for found in self.outcomes.values())
        counts = self.learnt
        yield (
            f"  training on score 1.0: {counts['episodes']} episodes, {counts['turns']} turns, "
            f"about {counts['tokens']} tokens of the model's own text"
        )
        yield f"  extraction: {both} of {len(self.outcomes)} tasks have a success and a failure to compare"

    def _why(self) -> str:
        reasons = _reasons(self.session.notes.dropped)
        return f" ({'; '.join(reasons)})" if reasons else ""


def _listed(title: str, counts: Counter[str]) -> Iterable[str]:
    reasons = _reasons(counts)
    return [f"  {title}: {'; '.join(reasons)}"] if reasons else []


def _reasons(counts: Counter[str]) -> list[str]:
    return [f"{count} {reason}" for reason, count in counts.most_common() if count]
