"""Shows episodes of a run in the terminal: which tasks were won when, and all episodes of one task side by side."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console

from internalize.errors import UserError

from .episodes import Entry, column
from .page import Episodes, Table, Text
from .run_report import episodes, load
from .terminal import print_part
from .text import policy_name


def publish(run_dir: Path, task: str, iterations: Sequence[int], console: Console) -> None:
    """Print the tasks of the suite measured at every iteration, or with `task` (the start of an id) its episodes.

    `iterations` limits both; none = all. Raises UserError if there is no such run or task.
    """
    found = [e for e in episodes(run_dir) if not iterations or e.iteration in iterations]
    if task:
        print_part(_episodes(found, task, run_dir), console)
        return
    suite = load(run_dir).suite
    print_part(tasks_table([entry for entry in found if entry.suite == suite]), console)
    legend = f"One mark an iteration: + won, - lost, ? unscored. `internalize view {run_dir} TASK` shows one task."
    print_part(Text(legend), console)


def tasks_table(entries: Sequence[Entry]) -> Table:
    """One row a task, in the order in which they were played."""
    tasks: dict[str, list[Entry]] = {}
    for entry in entries:
        tasks.setdefault(entry.task_id, []).append(entry)
    rows = [
        {
            "task": task,
            "without": _marks(e for e in of_task if e.plain),
            "with pool": _marks(e for e in of_task if not e.plain),
            "question": of_task[0].read().question,
        }
        for task, of_task in tasks.items()
    ]
    return Table(rows, text=("task", "question"))


def _marks(entries: Iterable[Entry]) -> str:
    """One mark per episode, by iteration, of those with its own pool (the starter: the first) and last candidate."""
    ordered = sorted(entries, key=lambda entry: (entry.stage.iteration, -entry.stage.candidate))
    chosen: dict[int, Path] = {}
    for entry in ordered:
        chosen.setdefault(entry.iteration, entry.path)
    shown = sorted((e for e in ordered if chosen[e.iteration] == e.path), key=lambda entry: entry.iteration)
    return "".join("?" if e.score is None else "+" if e.score == 1.0 else "-" for e in shown)


def _episodes(entries: Sequence[Entry], task: str, run_dir: Path) -> Episodes:
    found = [entry for entry in entries if entry.task_id.startswith(task)]
    tasks = {entry.task_id for entry in found}
    if len(tasks) != 1:
        raise UserError(f"{run_dir}: {len(tasks) or 'no'} tasks whose id starts with {task!r}")
    ordered = [(e, e.read()) for e in sorted(found, key=lambda entry: (entry.iteration, not entry.plain))]
    shown = [column(t, f"{policy_name(e.iteration)}{'' if e.plain else ', with experience'}") for e, t in ordered]
    return Episodes(ordered[0][1].question, tuple(shown))
