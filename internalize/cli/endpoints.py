"""`internalize endpoints`: what the servers of a recipe can do, asked with a few small requests.

Left out: any model of this process; tokenizers are compared when a run begins. What must not change: nothing but
the probe's requests is sent, and a server that cannot be asked does not hide the others.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import click

from internalize.config.schema import load_config
from internalize.errors import InfrastructureError, UserError


@click.command("endpoints")
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a recipe key.")
def endpoints_command(recipe: Path, overrides: tuple[str, ...]) -> None:
    """Ask every endpoint of RECIPE what it can do, and print a line for each."""
    from internalize.inference.capabilities import probe
    from internalize.inference.endpoints import Endpoints

    config = load_config(recipe, overrides)
    if not config.endpoints:
        raise UserError(f"{recipe}: has no section [endpoints.NAME]")
    endpoints, failed = Endpoints(config), 0
    for name in config.endpoints:
        try:
            link = endpoints.link(name)
            click.echo(f"{asyncio.run(probe(link)).text}; {link.usage.text}")
        except (UserError, InfrastructureError) as error:
            click.echo(str(error), err=True)
            failed += 1
    if failed:
        raise UserError(f"{recipe}: {failed} of {len(config.endpoints)} endpoints cannot be used")
