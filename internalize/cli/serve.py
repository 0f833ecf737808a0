"""`internalize serve` and `internalize episodes`: an endpoint for users' own agents, and what it recorded."""

from __future__ import annotations

import asyncio
import signal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from internalize.config.schema import Config, load_config, override_config
from internalize.errors import UserError

from .options import FILE, FOLDER, require_source, set_option
from .output import echo
from .recipes import recipe_file

if TYPE_CHECKING:
    from internalize.stages.serving import Sources


@click.command("serve")
@click.argument("source", metavar="RECIPE_OR_RUN", type=click.Path(path_type=Path))
@click.option("--out", type=FOLDER, required=True, help="Folder for the records; new ones are added to old ones.")
@click.option("--pool", "pool_file", type=FILE, help="Pool to inject as the recipe says (default: that of the run).")
@click.option("--no-pool", is_flag=True, help="Inject nothing.")
@click.option("--checkpoint", type=FOLDER, help="Weights to use instead of the starter's, or the run's kept ones.")
@set_option
def serve_command(
    source: Path,
    out: Path,
    pool_file: Path | None,
    checkpoint: Path | None,
    overrides: tuple[str, ...],
    *,
    no_pool: bool,
) -> None:
    """Serve a policy to agents and record what they do.

    SOURCE is a recipe or a run; agents call it like OpenAI or Anthropic.
    """
    if missing := [name for name in ("openai", "anthropic", "starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"serve needs the extra 'serve' (no {missing[0]}): pip install 'internalize[serve]'")
    from internalize.stages.recorded import open_run
    from internalize.stages.serving import Sources

    run = open_run(source) if source.is_dir() else None
    config = override_config(run.config, overrides) if run else load_config(recipe_file(source), overrides)
    require_source(config)
    if checkpoint and not checkpoint.is_dir():
        raise UserError(f"{checkpoint}: no such checkpoint folder")
    asyncio.run(_serve(config, Sources(run, checkpoint, pool_file), out, pool=not no_pool))


async def _serve(config: Config, sources: Sources, out: Path, *, pool: bool) -> None:
    """Serve until a signal; calls under way are still answered then."""
    from internalize.stages.serving import endpoint

    async with endpoint(config, sources, out, pool=pool) as (address, model):
        stop, loop = asyncio.Event(), asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        shown = f"pool {model.acting.pool_version} ({model.acting.pattern})" if model.acting.pool_version else "no pool"
        echo(f"{address}/v1 answers with {model.name}, {shown}; records in {out}")
        await stop.wait()


@click.command("episodes")
@click.argument("folder", type=FOLDER)
@click.option("--out", type=FILE, required=True, help="Trajectories, JSON Lines.")
@click.option("--scores", type=FILE, help='JSON Lines of {"episode", and "score", "success" or "reference"}.')
@click.option("--recipe", type=FILE, help="Recipe whose [serve] verifier and [judge] are used.")
@set_option
def episodes_command(
    folder: Path, out: Path, scores: Path | None, recipe: Path | None, overrides: tuple[str, ...]
) -> None:
    """Turn the records of `serve` into trajectories."""
    from internalize.runs.store import require_folder, write_jsonl
    from internalize.stages.served import served_episodes, summary

    require_folder(out)
    found = served_episodes(folder, load_config(recipe and recipe_file(recipe), overrides), scores)
    write_jsonl(out, found)
    echo(f"{out}: {summary(found)}")
