"""The entry point of the command line.

Exit codes: 0 = done, 2 = wrong usage or bad input, 3 = stopped early; with 2 and 3 one sentence on standard error says
why. Results go to standard output, progress and errors to standard error. Heavy modules are imported inside the
commands, because `--help` has to answer at once.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click

from internalize.config.schema import load_config
from internalize.errors import InternalizeError, NothingLearnt, UserError
from internalize.runs.progress import QUIET, going_on_by, is_interruption, progress
from internalize.runs.store import versions

from .cache import cache_group
from .endpoints import endpoints_command
from .export import export_command
from .judge import judge_command
from .logs import logs_group
from .options import FOLDER, json_option, print_figures, recipe_argument, require_source, set_option
from .output import echo, is_verbose, log_to_terminal, stop_on_signals
from .plan import plan_command
from .pool import pool_group
from .questions import questions_group
from .recipes import init_command, recipe_group
from .serve import episodes_command, serve_command
from .stages import distill_command, evaluate_command, extract_command, rollout_command, warm_up_command
from .study import diagnose_command, study_command, view_command
from .verify import verify_command


def _version(context: click.Context, _: click.Parameter, asked: bool) -> None:  # noqa: FBT001 - click calls it so
    """Print the version, with the commit where this is a checkout."""
    if asked:
        root, commit = Path(__file__).parents[2], ""
        if (root / ".git").exists():
            git = ["git", "-C", str(root), "describe", "--always", "--dirty"]
            commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603
        echo(f"internalize {versions().get('internalize', '(not installed)')}{commit and f' ({commit})'}")
        context.exit()


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Print the version."
)
@click.option("-q", "--quiet", is_flag=True, help="Print results and errors only: no progress, no warnings.")
@click.option("-v", "--verbose", is_flag=True, help="Also print notes, and where in the program an error occurred.")
@click.pass_context
def cli(context: click.Context, *, quiet: bool, verbose: bool) -> None:
    """Train LLM agents on their own experience, over many iterations."""
    log_to_terminal(logging.ERROR if quiet else logging.INFO if verbose else logging.WARNING)
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other")
    before = QUIET.set(quiet)
    context.call_on_close(lambda: QUIET.reset(before))


@cli.command()
@recipe_argument
@click.option("--out", type=FOLDER, required=True, help="Run directory.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, or start it.")
@set_option
def run(recipe: Path, out: Path, overrides: tuple[str, ...], *, resume: bool) -> None:
    """Run the whole loop, then print its report.

    K iterations, each evaluated with and without the pool.
    """
    config = load_config(recipe, overrides)
    require_source(config)
    with going_on_by("run the same command with --resume"):
        from internalize.loop import run as run_loop

        try:
            with progress() as show:
                run_loop(config, out, resume=resume, report=show, story=show.line)
        except NothingLearnt:  # report the finished measurements
            _report(out)
            raise
        _report(out)


@cli.command()
@click.argument("run_dir", type=FOLDER)
@click.option("--watch", is_flag=True, help="Write the pages again every 20 seconds until the run is finished.")
@json_option
def report(run_dir: Path, *, watch: bool, as_json: bool) -> None:
    """Print the report of a run and write its pages.

    They are report.md, report.html and figure.png in the run directory. The run may still be working: a browser reloads
    report.html by itself. With --json nothing is written; the output is the list of the lines of metrics.jsonl.
    """
    if not as_json:
        if watch:
            from internalize.report.publish import watch_run

            watch_run(run_dir)
        return _report(run_dir)
    from internalize.stages.recorded import open_run

    print_figures("", [line.model_dump(mode="json") for line in open_run(run_dir).metrics], as_json=True)
    return None


@cli.group()
def env() -> None:
    """List and validate environments."""


@env.command("list")
def env_list() -> None:
    """List the environments and what they need."""
    from internalize.environments import registry

    for name, about in registry.listing():
        echo(f"{name:<18} {about}")


@env.command("validate")
@click.argument("name")
@click.option(
    "--split", "splits", multiple=True, help="Split to check (repeatable; default: all splits of the environment)."
)
@click.option("--tokens", is_flag=True, help="Also count tokens with the tokenizer of model.source.")
@set_option
def env_validate(name: str, splits: tuple[str, ...], overrides: tuple[str, ...], *, tokens: bool) -> None:
    """Prove the tasks of an environment.

    Every reference solution must score 1.0 and no task may be in two splits; what guessing scores is shown.
    """
    from internalize.environments import registry
    from internalize.environments.validate import token_counter, validate

    config = load_config(None, overrides)
    problems = 0
    environment = registry.make(name, config.env.options)
    for row in validate(environment, splits, tokens=token_counter(config.model.source) if tokens else None):
        echo(row.text)
        problems += row.failed
    getattr(environment, "close", lambda: None)()
    if problems:
        raise UserError(f"{name}: validation found {problems} problems")


for command in (rollout_command, extract_command, distill_command, evaluate_command, warm_up_command):
    cli.add_command(command)
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
cli.add_command(cache_group)
cli.add_command(recipe_group)
cli.add_command(init_command)
cli.add_command(serve_command)
cli.add_command(episodes_command)
cli.add_command(questions_group)


def _report(run_dir: Path) -> None:
    from internalize.report.publish import publish_run

    publish_run(run_dir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error becomes one sentence and an exit code. `arguments` None = sys.argv."""
    stop_on_signals()
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
    except OSError as error:  # a user's file that was not checked before, or a failing device
        _stop(f"{error.filename}: {error.strerror}" if error.filename else str(error), 2)
    except Exception as error:
        if is_interruption(error):
            _stop("interrupted", 3)
        raise


def _usage_message(error: click.ClickException) -> str:
    """What was wrong with the call, and which help explains the right call."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    message = error.format_message().rstrip(".")
    return f"{message}; see {context.command_path} --help" if context else message


def _stop(message: str, code: int) -> NoReturn:
    if is_verbose():
        traceback.print_exc()
    echo(f"internalize: {' '.join(message.split())}", err=True)
    sys.exit(code)
