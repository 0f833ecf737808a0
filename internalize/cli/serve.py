"""`internalize serve` and `internalize episodes`: an endpoint for agents of somebody else's, and what it recorded."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import click

from internalize.config.schema import Config, load_config, override_config
from internalize.errors import UserError

from .output import echo

_FILE = click.Path(path_type=Path, dir_okay=False)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_set = click.option("--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Override a recipe value.")


@click.command("serve")
@click.argument("source", metavar="RECIPE_OR_RUN", type=click.Path(path_type=Path))
@click.option(
    "--out", type=_FOLDER, required=True, help="Folder for what is recorded; one that is there is gone on with."
)
@click.option("--pool", "pool_file", type=_FILE, help="Pool to inject as the recipe says (default: that of the run).")
@click.option("--no-pool", is_flag=True, help="Inject nothing.")
@click.option("--checkpoint", type=_FOLDER, help="Weights instead of the starter's, or of those that the run kept.")
@_set
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

    SOURCE is a recipe or a run; agents talk to it as to OpenAI or Anthropic.
    """
    from internalize.stages.recorded import open_run
    from internalize.stages.serving import Sources

    _require_packages()
    run = open_run(source) if source.is_dir() else None
    config = override_config(run.config, overrides) if run else load_config(source, overrides)
    asyncio.run(_serve(config, Sources(run, checkpoint, pool_file), out, pool=not no_pool))


async def _serve(config: Config, sources: object, out: Path, *, pool: bool) -> None:
    from internalize.stages.serving import Sources, endpoint

    assert isinstance(sources, Sources)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with endpoint(config, sources, out, pool=pool) as (address, model):
        shown = f"pool {model.acting.pool_version} ({model.acting.pattern})" if model.acting.pool_version else "no pool"
        echo(f"{address}/v1 answers with {model.name}, {shown}; records in {out}")
        await stop.wait()
    echo("stopped", err=True)


@click.command("episodes")
@click.argument("folder", type=_FOLDER)
@click.option("--out", type=_FILE, required=True, help="Trajectories, JSON Lines.")
@click.option("--scores", type=_FILE, help='JSON Lines of {"episode", and "score", "success" or "reference"}.')
@click.option("--recipe", type=_FILE, help="Recipe whose [serve] verifier and [judge] are used.")
@_set
def episodes_command(
    folder: Path, out: Path, scores: Path | None, recipe: Path | None, overrides: tuple[str, ...]
) -> None:
    """Turn what `serve` recorded into trajectories."""
    from internalize.runs.store import require_folder, write_jsonl
    from internalize.stages.served import served_episodes, summary

    require_folder(out)
    found = served_episodes(folder, load_config(recipe, overrides), scores)
    write_jsonl(out, found)
    echo(f"{out}: {summary(found)}")


def _require_packages() -> None:
    from importlib.util import find_spec

    if missing := [name for name in ("openai", "anthropic", "starlette", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"serve needs {missing[0]}: pip install 'internalize[serve]'")
