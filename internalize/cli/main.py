"""The entry point of the command line.

Exit codes: 0 = done, 2 = wrong usage or bad input, 3 = stopped early; with 2 and 3 one sentence on standard error says
why. Results go to standard output, progress and errors to standard error. Heavy modules are imported inside the
commands, because `--help` has to answer at once.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from internalize.config.schema import Config, load_config
from internalize.errors import InternalizeError, NothingLearnt, UserError
from internalize.runs.progress import going_on_by, progress
from internalize.runs.store import versions

from .endpoints import endpoints_command
from .export import export_command
from .judge import judge_command
from .logs import logs_group
from .plan import plan_command
from .pool import pool_group
from .recipes import init_command, recipe_file, recipe_group
from .serve import episodes_command, serve_command
from .study import diagnose_command, study_command, view_command
from .verify import verify_command

AGAIN = "run the same command again"
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_set = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe value.")
_recipe = click.argument("recipe", type=_FILE, callback=lambda _, __, given: recipe_file(given))


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it so
    """Print the version, with the commit where this is a checkout."""
    if asked:
        root, commit = Path(__file__).parents[2], ""
        if (root / ".git").exists():
            git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
            commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
        click.echo(f"internalize {versions().get('internalize', '(not installed)')}{commit and f' ({commit})'}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
def cli() -> None:
    """Train LLM agents on their own experience, over many iterations."""


@cli.command()
@_recipe
@click.option("--out", type=_FOLDER, required=True, help="Run directory.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, or start it.")
@_set
def run(recipe: Path, out: Path, overrides: tuple[str, ...], *, resume: bool) -> None:
    """Run the whole loop: K iterations, each evaluated with and without the pool, then the report."""
    config = load_config(recipe, overrides)
    _require_source(config)
    with going_on_by("run the same command with --resume"):
        from internalize.loop import run as run_loop

        try:
            with progress() as show:
                run_loop(config, out, resume=resume, report=show)
        except NothingLearnt:  # what was measured is worth a report
            _report(out)
            raise
        _report(out)


@cli.command()
@click.argument("run_dir", type=_FOLDER)
def report(run_dir: Path) -> None:
    """Print the report of a run and write report.md and figure.png into it."""
    _report(run_dir)


@cli.command()
@_recipe
@click.option("--out", type=_FILE, required=True, help="Trajectories, JSON Lines; those already in the file are kept.")
@click.option("--pool", "pool_file", type=_FILE, help="Pool to inject as the recipe says (default: none).")
@click.option("--checkpoint", type=_FOLDER, help="Weights to use instead of the starter's.")
@_set
def rollout(
    recipe: Path, out: Path, pool_file: Path | None, checkpoint: Path | None, overrides: tuple[str, ...]
) -> None:
    """Play episodes on the training split of the recipe."""
    config = load_config(recipe, overrides)
    _require_source(config)
    settings = config.rollout
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, TaskSlice, play

        amount = TaskSlice(settings.split, settings.tasks, settings.attempts)
        with progress() as show:
            trajectories = play(config, amount, out, Inputs(pool_file, checkpoint), show)
    scored = [t.score for t in trajectories if t.score is not None]
    success = f"success {sum(scored) / len(scored):.1%}" if scored else "nothing scored"
    click.echo(f"{out}: {len(trajectories)} trajectories, {len(trajectories) - len(scored)} unscored, {success}")


@cli.command()
@click.argument("trajectories", type=_FILE)
@click.option(
    "--out", type=_FILE, required=True, help="pool.json to write; a file with its edits is written next to it."
)
@click.option("--pool", "pool_file", type=_FILE, help="Pool to edit (default: an empty one).")
@click.option("--recipe", type=_FILE, help="Recipe whose [extract] section is used.")
@_set
def extract(
    trajectories: Path, out: Path, pool_file: Path | None, recipe: Path | None, overrides: tuple[str, ...]
) -> None:
    """Extract a pool of experience from trajectories."""
    config = load_config(recipe, overrides)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import extract_file

        with progress() as show:
            before, after, why = extract_file(config, trajectories, out, pool_file, show)
    click.echo(f"{out}: {len(after.items)} items (before: {len(before.items)}){why and f'; nothing was learnt: {why}'}")


@cli.command()
@_recipe
@click.argument("trajectories", type=_FILE)
@click.option("--out", type=_FOLDER, required=True, help="Folder for the new checkpoint.")
@click.option(
    "--pool",
    "pool_file",
    type=_FILE,
    help="Pool for the teacher (default: what each step was shown during the rollout).",
)
@click.option("--checkpoint", type=_FOLDER, help="Weights to start from instead of the starter's.")
@_set
def distill(
    recipe: Path,
    trajectories: Path,
    out: Path,
    pool_file: Path | None,
    checkpoint: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Train the policy to act without experience in the prompt as it acted with it."""
    config = load_config(recipe, overrides)
    _require_source(config)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, distill_file

        with progress() as show:
            summary = distill_file(config, trajectories, out, Inputs(pool_file, checkpoint), show)
    first, last = summary.first_loss, summary.last_loss
    loss = "nothing to train on" if first is None or last is None else f"loss {first:.4f} -> {last:.4f}"
    before, after = summary.held_out_before, summary.held_out_after
    if before is not None and after is not None:
        loss += f"; {summary.held_out} held out: {before:.4f} -> {after:.4f}"
    click.echo(f"{out}: {summary.accepted} trajectories, {summary.steps} steps, {loss}")


@cli.command()
@_recipe
@click.option("--out", type=_FILE, required=True, help="Episodes, JSON Lines; the results are written next to it.")
@click.option("--suite", default="dev", show_default=True, help="Split to evaluate on.")
@click.option("--pool", "pool_file", type=_FILE, help="Pool to inject as the recipe says (default: none).")
@click.option("--checkpoint", type=_FOLDER, help="Weights to use instead of the starter's.")
@_set
def evaluate(
    recipe: Path, out: Path, suite: str, pool_file: Path | None, checkpoint: Path | None, overrides: tuple[str, ...]
) -> None:
    """Measure the success on a suite, with its confidence interval."""
    config = load_config(recipe, overrides)
    _require_source(config)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, evaluate_file

        with progress() as show:
            line = evaluate_file(config, suite, out, Inputs(pool_file, checkpoint), show)
    interval = line.success
    shown = (
        "nothing scored"
        if interval is None
        else f"{interval.mean:.1%} [{interval.low:.1%}, {interval.high:.1%}] on {interval.n} tasks"
    )
    click.echo(f"{suite} {line.mode}: {shown}; premature {line.premature_rate:.1%}, turns {line.turns:.1f}")
    for family, success in line.families.items():
        click.echo(f"  {family:12} {success.mean:.1%} of {success.n}")


@cli.group()
def env() -> None:
    """List and validate environments."""


@env.command("list")
def env_list() -> None:
    """List the environments, one line each, with what to install if something is missing."""
    from internalize.environments import registry

    for name, about in registry.listing():
        click.echo(f"{name:<18} {about}")


@env.command("validate")
@click.argument("name")
@click.option(
    "--split", "splits", multiple=True, help="Split to check (repeatable; default: all splits of the environment)."
)
@click.option("--tokens", is_flag=True, help="Also count tokens with the tokenizer of model.source.")
@_set
def env_validate(name: str, splits: tuple[str, ...], overrides: tuple[str, ...], *, tokens: bool) -> None:
    """Check that every reference solution scores 1.0 and that no task is in two splits; show what guessing scores."""
    from internalize.environments import registry
    from internalize.environments.validate import token_counter, validate

    config = load_config(None, overrides)
    problems = 0
    environment = registry.make(name, config.env.options)
    for row in validate(environment, splits, tokens=token_counter(config.model.source) if tokens else None):
        click.echo(row.text)
        problems += row.failed
    getattr(environment, "close", lambda: None)()
    if problems:
        raise UserError(f"{name}: validation found {problems} problems")


cli.add_command(pool_group)
cli.add_command(verify_command)
cli.add_command(logs_group)
cli.add_command(study_command)
cli.add_command(diagnose_command)
cli.add_command(view_command)
cli.add_command(judge_command)
cli.add_command(export_command)
cli.add_command(endpoints_command)
cli.add_command(plan_command)
cli.add_command(recipe_group)
cli.add_command(init_command)
cli.add_command(serve_command)
cli.add_command(episodes_command)


def _require_source(config: Config) -> None:
    """Refuse a model file or folder that does not exist before anything slow starts."""
    source = Path(config.model.source).expanduser()
    if source.suffix == ".gguf" and not source.is_file():
        raise UserError(f"model.source: the file {source} does not exist")
    if source.suffix == ".gguf" and source.open("rb").read(4) != b"GGUF":
        raise UserError(f"model.source: {source} is not a GGUF file")
    if source.is_absolute() and not source.exists():
        raise UserError(f"model.source: the folder {source} does not exist")


def _report(run_dir: Path) -> None:
    from internalize.report.publish import publish_run

    publish_run(run_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error becomes one sentence and an exit code. `arguments` None = sys.argv."""
    try:
        cli.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        if "\n" in error.format_message():  # the help of a group that was called without a command; not an error
            error.show()
            sys.exit(2)
        _stop(_usage_message(error), 2)
    except UserError as error:
        _stop(str(error), 2)
    except InternalizeError as error:
        _stop(str(error), 3)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _stop("interrupted", 3)


def _usage_message(error: click.ClickException) -> str:
    """What was wrong with the call, and which help describes the right one."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    return f"{message}; see {context.command_path} --help" if context else message


def _stop(message: str, code: int) -> NoReturn:
    click.echo(f"internalize: {' '.join(message.split())}", err=True)
    sys.exit(code)
