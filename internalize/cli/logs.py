"""`internalize logs`: converts logs of other agents to trajectories and back. An input file is never overwritten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from internalize.errors import UserError

from .output import echo

if TYPE_CHECKING:
    from internalize.formats.survey import Survey
    from internalize.records import Trajectory

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group("logs")
def logs_group() -> None:
    """Convert logs of other agents to trajectories and back."""


def _reading(command: Callable[..., None]) -> Callable[..., None]:
    """The arguments of a command that reads logs."""
    options = (
        click.argument("files", type=click.Path(path_type=Path), nargs=-1, required=True),
        click.option(
            "--format", "kind", default="auto", show_default=True, metavar="NAME",
            help="Format of the logs; `logs formats` lists them. auto: recognized by content.",
        ),
        click.option("--env", default="chat", show_default=True, help="Environment that produced the logs."),
        click.option("--split", default="train", show_default=True, help="Split that the tasks belong to."),
        click.option(
            "--protocol", type=click.Choice(["json", "bracket", "native"]), default="json", show_default=True,
            help="Format of tool calls; native: the model's own. Use that of the model to be trained (model.protocol).",
        ),
        click.option("--thinking", is_flag=True, help="Keep the thoughts of turns, in <think> tags."),
        click.option("--score", type=click.FloatRange(0, 1), help="Score of episodes whose log has none."),
        click.option(
            "--score-range", type=float, nargs=2, default=(0.0, 1.0), metavar="LOW HIGH",
            help="Scores of the logs that mean failure and success (default: 0 1).",
        ),
        click.option("--skip", is_flag=True, help="Leave out and count unreadable entries instead of stopping."),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command


@logs_group.command("import")
@_reading
@click.option("--out", type=_FILE, required=True, help="Trajectories, JSON Lines.")
def import_(files: tuple[Path, ...], kind: str, out: Path, *, skip: bool, **reading: Any) -> None:
    """Convert logs to trajectories.

    `extract` and `distill` read them. A folder is searched for logs.
    """
    from internalize.runs.store import require_folder, write_jsonl

    require_folder(out)
    _require_other(out, *files)
    survey, found = _read(files, kind, reading, skip=skip)
    write_jsonl(out, found)
    echo(f"{out}: {survey.summary()}")
    for line in survey.details():
        echo(line)


@logs_group.command("check")
@_reading
def check(files: tuple[Path, ...], kind: str, *, skip: bool, **reading: Any) -> None:
    """Show what a training on logs would use.

    It also counts their other contents. Nothing is written.
    """
    survey, found = _read(files, kind, reading, skip=skip)
    for _ in found:
        pass
    echo(survey.summary())
    for line in (*survey.details(), *survey.use()):
        echo(line)


@logs_group.command("formats")
def formats() -> None:
    """List the formats that are recognized."""
    from internalize.formats.recognition import FORMATS

    for name, known in FORMATS.items():
        echo(f"{name:18} {known.about}")


@logs_group.command("export")
@click.argument("trajectories", type=_FILE)
@click.option(
    "--format", "kind", type=click.Choice(["chat", "atif", "official-rollout", "official-eval"]), default="chat",
    show_default=True, help="OpenAI messages, ATIF, or rollout.jsonl or iterN.jsonl of the paper's released code.",
)  # fmt: skip
@click.option("--out", type=_FILE, required=True, help="Logs, JSON Lines.")
def export(trajectories: Path, kind: str, out: Path) -> None:
    """Convert trajectories to logs.

    They hold the clean history, without step-wise experience and token ids.
    """
    from internalize.formats import atif, chat, official
    from internalize.formats.wire import Document
    from internalize.records import Trajectory
    from internalize.runs.store import require_folder, stream_numbered, write_jsonl

    require_folder(out)
    _require_other(out, trajectories)
    writers: dict[str, Callable[[Trajectory, int], Any]] = {
        "chat": lambda trajectory, _: chat.to_chat(trajectory),
        "atif": lambda trajectory, _: Document(atif.to_atif(trajectory)),
        "official-rollout": official.to_rollout,
        "official-eval": lambda trajectory, _: official.to_evaluation(trajectory),
    }
    count = 0

    def logs() -> Iterator[Any]:
        nonlocal count
        for _, trajectory in stream_numbered(trajectories, Trajectory):
            yield writers[kind](trajectory, count)
            count += 1

    write_jsonl(out, logs())
    echo(f"{out}: {count} logs")


def _read(
    files: tuple[Path, ...], kind: str, reading: dict[str, Any], *, skip: bool
) -> tuple[Survey, Iterator[Trajectory]]:
    """What the logs hold, counted while the trajectories are taken, one at a time. Raises UserError."""
    from internalize.formats.reading import Reading, Session
    from internalize.formats.survey import Survey

    low, high = reading["score_range"]
    if low >= high:
        raise UserError(f"--score-range {low:g} {high:g}: the first number must be below the second")
    survey = Survey(Session(Reading(**reading), skip=skip))
    return survey, survey.trajectories(files, kind)


def _require_other(out: Path, *files: Path) -> None:
    if any(out.resolve() == file.resolve() for file in files):
        raise UserError(f"{out}: is the file that is read; choose another --out")
