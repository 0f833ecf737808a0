"""Episodes of a run to read in the terminal: which tasks were won when, and all episodes of one task side by side.

Left out: anything interactive; report.html has a fixed choice of episodes as a page. What must not change: nothing is
chosen for the reader, and text of models and environments is printed as plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from internalize.errors import UserError
from internalize.records import Step, Trajectory

from .run_report import episodes, load
from .samples import Entry
from .tables import Row
from .terminal import plain_text, print_table
from .text import plain, policy_name

TASK_HEAD = ("task", "without", "with pool", "question")
NARROWEST = 36  # columns of a terminal that an episode takes at least
LONGEST = 400  # characters shown of an observation or a hint


def publish(run_dir: Path, task: str, iterations: Sequence[int], console: Console) -> None:
    """Print the tasks of the suite measured at every iteration, or with `task` (the start of an id) its episodes.

    `iterations` limits both; none = all. Raises UserError if there is no such run or task.
    """
    found = [e for e in episodes(run_dir) if not iterations or e.iteration in iterations]
    if task:
        _print_episodes(_of(found, task, run_dir), console)
        return
    suite = load(run_dir).suite
    print_table(TASK_HEAD, task_rows([entry for entry in found if entry.suite == suite]), console, text=(0, 3))
    said = f"One mark an iteration: + won, - lost, ? unscored. `internalize view {run_dir} TASK` shows one task."
    console.print(plain_text(said))


def task_rows(entries: Sequence[Entry]) -> list[Row]:
    """One row under TASK_HEAD for each task, in the order in which they were played."""
    tasks: dict[str, list[Entry]] = {}
    for entry in entries:
        tasks.setdefault(entry.task_id, []).append(entry)
    rows: list[Row] = []
    for task, played in tasks.items():
        without, shown = (_one_file(e for e in played if e.plain == wanted) for wanted in (True, False))
        rows.append((task, marks(without), marks(shown), played[0].read().question))
    return rows


def _one_file(entries: Iterable[Entry]) -> list[Entry]:
    """Of each iteration the episodes with its own pool (the starter: with the first) and of its last candidate."""
    ordered = sorted(entries, key=lambda entry: (entry.folder, -entry.candidate))
    chosen: dict[int, Path] = {}
    for entry in ordered:
        chosen.setdefault(entry.iteration, entry.path)
    return [entry for entry in ordered if chosen[entry.iteration] == entry.path]


def marks(entries: Sequence[Entry]) -> str:
    """One mark an episode, by iteration: + won, - lost, ? unscored."""
    ordered = sorted(entries, key=lambda entry: entry.iteration)
    return "".join("?" if e.score is None else "+" if e.score == 1.0 else "-" for e in ordered)


def _of(entries: Sequence[Entry], task: str, run_dir: Path) -> list[Entry]:
    found = [entry for entry in entries if entry.task_id.startswith(task)]
    tasks = {entry.task_id for entry in found}
    if len(tasks) != 1:
        raise UserError(f"{run_dir}: {len(tasks) or 'no'} tasks whose id starts with {task!r}")
    return sorted(found, key=lambda entry: (entry.iteration, not entry.plain))


def _print_episodes(entries: Sequence[Entry], console: Console) -> None:
    played = [(entry, entry.read()) for entry in entries]
    console.print(plain_text(played[0][1].question, style="bold"))
    fitting = max(1, console.width // NARROWEST)
    for start in range(0, len(played), fitting):
        console.print(_side_by_side(played[start : start + fitting]))


def _side_by_side(played: Sequence[tuple[Entry, Trajectory]]) -> Table:
    """One column an episode, one row a step."""
    table = Table(expand=True, show_lines=True)
    for entry, trajectory in played:
        table.add_column(_title(entry, trajectory), ratio=1, overflow="fold", header_style="bold")
    for number in range(max(len(trajectory.steps) for _, trajectory in played)):
        cells = [_step(t.steps[number]) if number < len(t.steps) else Text() for _, t in played]
        table.add_row(*cells)
    return table


def _title(entry: Entry, trajectory: Trajectory) -> Text:
    score = "unscored" if trajectory.score is None else f"score {trajectory.score:g}"
    shown = "" if entry.plain else ", with experience"
    return plain_text(f"{policy_name(entry.iteration)}{shown}: {score}, {trajectory.termination.replace('_', ' ')}")


def _step(step: Step) -> Group:
    shown = step.injection.text if step.injection and step.injection.item_ids else ""
    return Group(
        *([Text(plain(shown, LONGEST), style="yellow")] if shown else []),
        Text(plain(step.text, LONGEST), style="cyan" if step.calls else "red"),
        *([Text(plain(step.observation, LONGEST), style="dim")] if step.observation else []),
    )
