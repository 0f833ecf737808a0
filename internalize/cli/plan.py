"""`internalize plan`: estimates in seconds, without weights, what a recipe will take and whether it can work here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from internalize.config.schema import load_config
from internalize.errors import InfrastructureError, UserError

from .options import FILE, FOLDER, recipe_argument, set_option
from .output import echo

if TYPE_CHECKING:
    from internalize.stages.estimate import Estimate

_rate = click.FloatRange(min=0, min_open=True)


@click.command("plan")
@recipe_argument
@click.option("--like", type=FOLDER, help="Run whose episodes are taken as typical (default: the recipe's limits).")
@click.option("--architecture", type=FILE, help="The model's config.json, if the model is not on this machine.")
@click.option("--sampling", type=_rate, help="Tokens that rollouts sample in a second, to estimate their time.")
@click.option("--training", type=_rate, help="Tokens that training reads in a second, to estimate its time.")
@click.option("--memory", type=_rate, help="Memory of the device, GiB; a recipe that needs more is refused.")
@click.option("--out", type=FOLDER, help="Future run directory; exit code 2 if its disk has no room.")
@set_option
def plan_command(  # noqa: PLR0913 - an option each
    recipe: Path,
    *,
    like: Path | None,
    architecture: Path | None,
    sampling: float | None,
    training: float | None,
    memory: float | None,
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Estimate what RECIPE will take; no model is loaded.

    Tasks, episodes, tokens, requests, cost, memory, disk and time.

    Token counts are those that the limits allow, unless --like names a run. Exit code 2 if the recipe cannot work here.
    """
    from internalize.environments.registry import Environments
    from internalize.inference.architecture import Architecture
    from internalize.stages.estimate import EpisodeSize, estimate, problems
    from internalize.stages.plan import plan_tasks

    config = load_config(recipe, overrides)
    tasks = plan_tasks(config, Environments())
    try:
        model, unknown = Architecture.of(config.model.source, architecture), ""
    except InfrastructureError as error:
        model, unknown = None, str(error)
    found = estimate(config, tasks, model, EpisodeSize.of_run(like) if like else None)
    suites = [f"{name} {len(suite):,}" for name, suite in tasks.suites.items()]
    echo(f"{'tasks':<10} {config.rollout.split} {len(tasks.training):,}, {', '.join(suites)}")
    for name, text in _lines(found, sampling, training, most="" if like else "at most "):
        echo(f"{name:<10} {text}")
    if unknown:
        echo(f"{'model':<10} {unknown}")
    room = None if memory is None else round(memory * 2**30)
    for problem in problems(config, found, room, out):
        raise UserError(f"{recipe}: {problem}")


def _lines(found: Estimate, sampling: float | None, training: float | None, most: str) -> Iterator[tuple[str, str]]:
    """The estimates, one line for each subject."""
    from internalize.report.text import count, duration

    parts = ", ".join(f"{stage} {count(number)}" for stage, number in found.episodes.items())
    yield "episodes", f"{parts}; {count(sum(found.episodes.values()))} in all"
    yield "tokens", f"{most}{count(found.sampled)} sampled, contexts of {count(found.read)}"
    yield "training", f"at most {count(found.steps)} optimizer steps over {count(found.trained)} tokens"
    for one in found.requests:
        tokens = f"{count(one.prompt_tokens)} prompt and {count(one.completion_tokens)} answer tokens"
        yield one.use, f"{one.name}: at most {count(one.number)} requests, {tokens}, cost {one.cost:,.2f}"
    yield "memory", f"{_sizes(found.memory)}; activations of training come on top"
    yield "disk", _sizes(found.disk)
    if sampling:
        yield "rollouts", f"{duration(found.sampled / sampling)} at {sampling:g} sampled tokens/s"
    if training:
        yield "training", f"{duration(found.trained / training)} at {training:g} tokens/s"


def _sizes(parts: dict[str, int | None]) -> str:
    """Sizes by name, and their sum if all are known."""
    from internalize.report.text import memory

    known = [size for size in parts.values() if size is not None]
    text = ", ".join(f"{name} {'not known' if size is None else memory(size)}" for name, size in parts.items())
    return f"{text}; {memory(sum(known))} in all" if len(known) == len(parts) else text
