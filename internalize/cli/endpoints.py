"""`internalize endpoints`: probes the servers of a recipe with a few small requests and reports what they support.

A server that fails does not keep the others from being probed.
"""

from __future__ import annotations

from pathlib import Path

import click

from internalize.config.schema import load_config
from internalize.errors import InfrastructureError, UserError

from .output import echo


@click.command("endpoints")
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
def endpoints_command(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Show what each endpoint of RECIPE can do, one line each."""
    import asyncio

    from internalize.inference.capabilities import probe
    from internalize.inference.endpoints import Endpoints

    config = load_config(recipe, overrides)
    if not config.endpoints:
        raise UserError(f"{recipe}: has no section [endpoints.NAME]")
    endpoints, failed = Endpoints(config), 0
    for name in config.endpoints:
        try:
            client = endpoints.client(name)
            echo(f"{asyncio.run(probe(client)).text}; {client.usage.text}")
        except (UserError, InfrastructureError) as error:
            echo(str(error), err=True)
            failed += 1
    if failed:
        raise UserError(f"{recipe}: {failed} of {len(config.endpoints)} endpoints cannot be used")
