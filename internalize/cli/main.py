"""The command line. Exit codes: 0 done, 2 wrong use or bad input, 3 stopped early; 2 and 3 say why in one sentence.

Left out: any work of its own. Everything heavy is imported where it is used, so that `--help` answers at once.
What must not change: results go to standard output, progress and errors to standard error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from internalize.config.schema import Config, load_config
from internalize.errors import InternalizeError, UserError
from internalize.runs.progress import going_on_by, progress
from internalize.runs.store import versions

from .endpoints import endpoints_command
from .export import export_command
from .judge import judge_command
from .logs import logs_group
from .pool import pool_group
from .study import diagnose_command, study_command, view_command

AGAIN = "run the same command again"
_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_set = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe value.")
_recipe = click.argument("recipe", type=_FILE)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(versions().get("internalize", "(not installed)"))
def cli() -> None:
    """LLM agents that learn from their own experience, again and again."""


@cli.command()
@_recipe
@click.option("--out", type=_FOLDER, required=True, help="Run directory.")
@click.option("--resume", is_flag=True, help="Go on with the run in --out (or start it).")
@_set
def run(recipe: Path, out: Path, overrides: tuple[str, ...], *, resume: bool) -> None:
    """The whole loop: K iterations, each measured with and without the pool, and a report."""
    config = load_config(recipe, overrides)
    _require_source(config)
    with going_on_by("run the same command with --resume"):
        from internalize.loop import run as run_loop

        with progress() as show:
            run_loop(config, out, resume=resume, report=show)
        _report(out)


@cli.command()
@click.argument("run_dir", type=_FOLDER)
def report(run_dir: Path) -> None:
    """Print the report of a run and write report.md and figure.png into it."""
    _report(run_dir)


@cli.command()
@_recipe
@click.option("--out", type=_FILE, required=True, help="Trajectories, JSON Lines; those already there are kept.")
@click.option("--pool", "pool_file", type=_FILE, help="Pool to inject as the recipe says (default: none).")
@click.option("--checkpoint", type=_FOLDER, help="Weights to use instead of the starter's.")
@_set
def rollout(
    recipe: Path, out: Path, pool_file: Path | None, checkpoint: Path | None, overrides: tuple[str, ...]
) -> None:
    """Episodes on the recipe's training split."""
    config = load_config(recipe, overrides)
    _require_source(config)
    settings = config.rollout
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, TaskSlice, play

        amount = TaskSlice(settings.split, settings.tasks, settings.attempts)
        with progress() as show:
            found = play(config, amount, out, Inputs(pool_file, checkpoint), show)
    scored = [t.score for t in found if t.score is not None]
    success = f"success {sum(scored) / len(scored):.1%}" if scored else "nothing scored"
    click.echo(f"{out}: {len(found)} trajectories, {len(found) - len(scored)} unscored, {success}")


@cli.command()
@click.argument("trajectories", type=_FILE)
@click.option("--out", type=_FILE, required=True, help="pool.json to write; its edits go beside it.")
@click.option("--pool", "pool_file", type=_FILE, help="Pool to edit (default: an empty one).")
@click.option("--recipe", type=_FILE, help="Recipe whose [extract] section is used.")
@_set
def extract(
    trajectories: Path, out: Path, pool_file: Path | None, recipe: Path | None, overrides: tuple[str, ...]
) -> None:
    """Trajectories to a pool of experience."""
    config = load_config(recipe, overrides)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import extract_file

        with progress() as show:
            before, after = extract_file(config, trajectories, out, pool_file, show)
    click.echo(f"{out}: {len(after.items)} items (before: {len(before.items)})")


@cli.command()
@_recipe
@click.argument("trajectories", type=_FILE)
@click.option("--out", type=_FOLDER, required=True, help="Folder for the new checkpoint.")
@click.option("--pool", "pool_file", type=_FILE, help="Pool to show the teacher (default: what each step was shown).")
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
    """Trajectories with injected experience to weights that act so without it."""
    config = load_config(recipe, overrides)
    _require_source(config)
    with going_on_by(AGAIN):
        from internalize.stages.standalone import Inputs, distill_file

        with progress() as show:
            summary = distill_file(config, trajectories, out, Inputs(pool_file, checkpoint), show)
    first, last = summary.first_loss, summary.last_loss
    loss = "nothing to train on" if first is None or last is None else f"loss {first:.4f} -> {last:.4f}"
    before, after = summary.held_out_before, summary.held_out_after
    held = "" if before is None or after is None else f"; {summary.held_out} held out: {before:.4f} -> {after:.4f}"
    click.echo(f"{out}: {summary.accepted} trajectories, {summary.steps} steps, {loss}{held}")


@cli.command()
@_recipe
@click.option("--out", type=_FILE, required=True, help="Episodes, JSON Lines; results go beside it.")
@click.option("--suite", default="dev", show_default=True, help="Split to measure on.")
@click.option("--pool", "pool_file", type=_FILE, help="Pool to inject as the recipe says (default: none).")
@click.option("--checkpoint", type=_FOLDER, help="Weights to use instead of the starter's.")
@_set
def evaluate(
    recipe: Path, out: Path, suite: str, pool_file: Path | None, checkpoint: Path | None, overrides: tuple[str, ...]
) -> None:
    """Success on a suite, with its interval."""
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
    """Environments."""


@env.command("list")
def env_list() -> None:
    """Every environment with one line about it, and what to install for it if something is missing."""
    from internalize.environments import registry

    for name, about in registry.listing():
        click.echo(f"{name:<18} {about}")


@env.command("validate")
@click.argument("name")
@click.option("--split", "splits", multiple=True, help="Splits to check (default: all that the environment names).")
@click.option("--tokens", is_flag=True, help="Count tokens too, with the tokenizer of model.source.")
@_set
def env_validate(name: str, splits: tuple[str, ...], overrides: tuple[str, ...], *, tokens: bool) -> None:
    """Prove every task: its reference solution scores 1.0, no task stands in two splits; what guessing scores."""
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
        raise UserError(f"{name}: not proved, {problems} problems")


cli.add_command(pool_group)
cli.add_command(logs_group)
cli.add_command(study_command)
cli.add_command(diagnose_command)
cli.add_command(view_command)
cli.add_command(judge_command)
cli.add_command(export_command)
cli.add_command(endpoints_command)


def _require_source(config: Config) -> None:
    """Answer at once for a file or folder that is not there; everything else is seen when the model is loaded."""
    source = Path(config.model.source).expanduser()
    if source.suffix == ".gguf" and not source.is_file():
        raise UserError(f"model.source: no file {source}")
    if source.suffix == ".gguf" and source.open("rb").read(4) != b"GGUF":
        raise UserError(f"model.source: {source} is no GGUF file")
    if source.is_absolute() and not source.exists():
        raise UserError(f"model.source: no folder {source}")


def _report(run_dir: Path) -> None:
    from internalize.report.publish import publish_run

    publish_run(run_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point: errors become one sentence and an exit code. `arguments` None = those of the process."""
    try:
        cli.main(arguments, standalone_mode=False)
    except click.ClickException as error:
        if "\n" in error.format_message():  # no error but the help of a group that was called without a command
            error.show()
            sys.exit(2)
        _stop(_pointed(error), 2)
    except UserError as error:
        _stop(str(error), 2)
    except InternalizeError as error:
        _stop(str(error), 3)
    except (click.exceptions.Abort, KeyboardInterrupt):
        _stop("interrupted", 3)


def _pointed(error: click.ClickException) -> str:
    """What was wrong with the call, and where the right one is described."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    return f"{message}; see {context.command_path} --help" if context else message


def _stop(message: str, code: int) -> NoReturn:
    click.echo(f"internalize: {' '.join(message.split())}", err=True)
    sys.exit(code)
