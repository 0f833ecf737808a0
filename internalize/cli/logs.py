"""`internalize logs`: converts logs of other agents to trajectories and back. An input file is never overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from internalize.errors import UserError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from internalize.records import Trajectory

Format = Literal["chat", "official-rollout", "official-eval"]
_FILE = click.Path(path_type=Path, dir_okay=False)
_format = click.option(
    "--format", "kind", type=click.Choice(["chat", "official-rollout", "official-eval"]), default="chat",
    show_default=True, help="OpenAI messages, or rollout.jsonl or iterN.jsonl of the paper's released code.",
)  # fmt: skip


@click.group("logs")
def logs_group() -> None:
    """Convert logs of other agents to trajectories and back."""


@logs_group.command("import")
@click.argument("file", type=_FILE)
@_format
@click.option("--out", type=_FILE, required=True, help="Trajectories, JSON Lines.")
@click.option("--env", default="chat", show_default=True, help="Name of the environment that produced the logs.")
@click.option("--split", default="train", show_default=True, help="Split that the tasks belong to.")
@click.option(
    "--protocol", type=click.Choice(["json", "bracket"]), default="json", show_default=True,
    help="Text format of tool calls; use the model.protocol of the model to be trained.",
)  # fmt: skip
@click.option("--thinking", is_flag=True, help="Keep reasoning_content, in <think> tags.")
@click.option("--score", type=click.FloatRange(0, 1), help="Score of episodes whose log has none.")
def import_(file: Path, kind: Format, out: Path, **reading: Any) -> None:
    """Convert logs to trajectories that `extract` and `distill` read."""
    from internalize.formats import chat, official
    from internalize.runs.store import require_folder, write_jsonl

    require_folder(out)
    _require_other(out, file)
    readers = {
        "chat": chat.read_chat,
        "official-rollout": official.read_rollouts,
        "official-eval": official.read_evaluation,
    }
    trajectories = readers[kind](file, chat.Reading(**reading))
    write_jsonl(out, trajectories)
    click.echo(f"{out}: {_summary(trajectories)}")


@logs_group.command("export")
@click.argument("trajectories", type=_FILE)
@_format
@click.option("--out", type=_FILE, required=True, help="Logs, JSON Lines.")
def export(trajectories: Path, kind: Format, out: Path) -> None:
    """Convert trajectories to logs: the clean history, without step-wise experience and token ids."""
    from internalize.formats import chat, official
    from internalize.records import Trajectory
    from internalize.runs.store import read_jsonl, require_folder, write_jsonl

    require_folder(out)
    _require_other(out, trajectories)
    lines: list[BaseModel] = []
    for number, trajectory in enumerate(read_jsonl(trajectories, Trajectory)):
        if kind == "chat":
            lines.append(chat.to_chat(trajectory))
        elif kind == "official-rollout":
            lines.append(official.to_rollout(trajectory, number))
        else:
            lines.append(official.to_evaluation(trajectory))
    write_jsonl(out, lines)
    click.echo(f"{out}: {len(lines)} logs")


def _require_other(out: Path, file: Path) -> None:
    if out.resolve() == file.resolve():
        raise UserError(f"{out}: is the file that is read; choose another --out")


def _summary(trajectories: list[Trajectory]) -> str:
    scored = [t.score for t in trajectories if t.score is not None]
    steps = [step for t in trajectories for step in t.steps]
    tasks = {t.task_id for t in trajectories}
    success = f"success {sum(scored) / len(scored):.1%}" if scored else "nothing scored"
    return (
        f"{len(trajectories)} trajectories of {len(tasks)} tasks, {len(trajectories) - len(scored)} unscored, "
        f"{success}; {len(steps)} steps, {sum(not (step.calls or step.ended) for step in steps)} without a call"
    )
