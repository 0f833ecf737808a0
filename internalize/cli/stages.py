"""Single stages as commands, with files in and out."""

from __future__ import annotations

from pathlib import Path

import click

from internalize.config.schema import load_config
from internalize.runs.progress import going_on_by, progress

from .options import FILE, FOLDER, json_option, print_figures, recipe_argument, require_source, set_option

AGAIN = "run the same command again"
WARM_UP = ("distill.divergence=sft", "distill.filter=success", "distill.generator=teacher", "distill.teacher=frozen")


@click.command("rollout")
@recipe_argument
@click.option("--out", type=FILE, required=True, help="Trajectories, JSON Lines; those already in the file are kept.")
@click.option("--pool", "pool_file", type=FILE, help="Pool to inject as the recipe says (default: none).")
@click.option("--checkpoint", type=FOLDER, help="Weights to use instead of the starter's.")
@json_option
@set_option
def rollout_command(
    recipe: Path,
    out: Path,
    pool_file: Path | None,
    checkpoint: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Play episodes on the training split of the recipe."""
    config = load_config(recipe, overrides)
    require_source(config)
    settings = config.rollout
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, TaskSlice, play

        amount = TaskSlice(settings.split, settings.tasks, settings.attempts)
        with progress() as report:
            trajectories = play(config, amount, out, Inputs(pool_file, checkpoint), report)
    scored = [t.score for t in trajectories if t.score is not None]
    success = sum(scored) / len(scored) if scored else None
    unscored = len(trajectories) - len(scored)
    came_of_it = "nothing scored" if success is None else f"success {success:.1%}"
    print_figures(
        f"{out}: {len(trajectories)} trajectories, {unscored} unscored, {came_of_it}",
        {"out": str(out), "trajectories": len(trajectories), "unscored": unscored, "success": success},
        as_json=as_json,
    )


@click.command("extract")
@click.argument("trajectories", type=FILE)
@click.option(
    "--out", type=FILE, required=True, help="pool.json to write; a file with its edits is written next to it."
)
@click.option("--pool", "pool_file", type=FILE, help="Pool to edit (default: an empty one).")
@click.option("--recipe", type=FILE, help="Recipe whose [extract] section is used.")
@json_option
@set_option
def extract_command(
    trajectories: Path,
    out: Path,
    pool_file: Path | None,
    recipe: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Extract a pool of experience from trajectories."""
    config = load_config(recipe, overrides)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import extract_file

        with progress() as report:
            before, after, why = extract_file(config, trajectories, out, pool_file, report)
    print_figures(
        f"{out}: {len(after.items)} items (before: {len(before.items)}){why and f'; nothing was learnt: {why}'}",
        {"out": str(out), "items": len(after.items), "before": len(before.items), "empty_because": why},
        as_json=as_json,
    )


@click.command("distill")
@recipe_argument
@click.argument("trajectories", type=FILE)
@click.option("--out", type=FOLDER, required=True, help="Folder for the new checkpoint.")
@click.option(
    "--pool",
    "pool_file",
    type=FILE,
    help="Pool for the teacher (default: the items that each step was shown).",
)
@click.option("--checkpoint", type=FOLDER, help="Weights to start from instead of the starter's.")
@json_option
@set_option
def distill_command(
    recipe: Path,
    trajectories: Path,
    out: Path,
    pool_file: Path | None,
    checkpoint: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Distill trajectories into the weights of the policy.

    It learns to act without experience in the prompt as it acted with it.
    """
    config = load_config(recipe, overrides)
    require_source(config)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, distill_file

        with progress() as report:
            summary = distill_file(config, trajectories, out, Inputs(pool_file, checkpoint), report)
    first, last = summary.first_loss, summary.last_loss
    loss = "nothing to train on" if first is None or last is None else f"loss {first:.4f} -> {last:.4f}"
    before, after = summary.held_out_before, summary.held_out_after
    if before is not None and after is not None:
        loss += f"; {summary.held_out} held out: {before:.4f} -> {after:.4f}"
    text = f"{out}: {summary.accepted} trajectories, {summary.steps} steps, {loss}"
    print_figures(text, {"out": str(out), **summary.model_dump(mode="json")}, as_json=as_json)


@click.command("evaluate")
@recipe_argument
@click.option("--out", type=FILE, required=True, help="Episodes, JSON Lines; the results are written next to it.")
@click.option("--suite", default="dev", show_default=True, help="Split to evaluate on.")
@click.option("--pool", "pool_file", type=FILE, help="Pool to inject as the recipe says (default: none).")
@click.option("--checkpoint", type=FOLDER, help="Weights to use instead of the starter's.")
@json_option
@set_option
def evaluate_command(
    recipe: Path,
    out: Path,
    suite: str,
    pool_file: Path | None,
    checkpoint: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
) -> None:
    """Measure the success on a suite, with its confidence interval."""
    config = load_config(recipe, overrides)
    require_source(config)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, evaluate_file

        with progress() as report:
            line = evaluate_file(config, suite, out, Inputs(pool_file, checkpoint), report)
    interval = line.success
    shown = (
        "nothing scored"
        if interval is None
        else f"{interval.mean:.1%} [{interval.low:.1%}, {interval.high:.1%}] on {interval.n} tasks"
    )
    text = f"{suite} {line.mode}: {shown}; premature {line.premature_rate:.1%}, turns {line.turns:.1f}"
    families = [f"  {family:12} {success.mean:.1%} of {success.n}" for family, success in line.families.items()]
    print_figures("\n".join([text, *families]), line.model_dump(mode="json"), as_json=as_json)


@click.command("warm-up")
@recipe_argument
@click.option("--out", type=FOLDER, required=True, help="Folder for the adapter; the episodes are written next to it.")
@click.option("--tasks", default=100, show_default=True, type=click.IntRange(1), help="Training tasks to learn from.")
@json_option
@set_option
def warm_up_command(recipe: Path, out: Path, tasks: int, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Train a model on reference solutions.

    For a model that solves no task yet: the loop needs successes to learn from. The environment must have reference
    solutions, and only tasks of the training split are used.
    """
    config = load_config(recipe, [*WARM_UP, *overrides])
    require_source(config)
    with going_on_by(AGAIN):
        from internalize.stages.warm_up import warm_up

        with progress() as report:
            summary = warm_up(config, tasks, out, report)
    first, last = summary.first_loss, summary.last_loss
    loss = "" if first is None or last is None else f", loss {first:.3f} -> {last:.3f}"
    text = f"{out}: {summary.accepted} reference solutions, {summary.steps} steps{loss}"
    text += f"\nNext: internalize run {recipe} --out RUN --set model.adapter={out}"
    print_figures(text, {"out": str(out), **summary.model_dump(mode="json")}, as_json=as_json)
