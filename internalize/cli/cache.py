"""`internalize cache`: shows and cleans the folder of converted models and other things that are slow to build."""

from __future__ import annotations

import click

from internalize.runs import cache

from .output import echo


@click.group("cache")
def cache_group() -> None:
    """Show and clean the cache of converted models."""


@cache_group.command("show")
def show() -> None:
    """List what the cache holds, with sizes."""
    found = cache.entries()
    echo(f"{cache.cache_folder()}: {sum(entry.size for entry in found) / 1e6:.0f} MB (INTERNALIZE_CACHE moves it)")
    for entry in found:
        echo(f"{entry.size / 1e6:8.1f} MB  unused for {entry.idle / 86400:4.0f} days  {entry.path.name}")


@cache_group.command("clean")
@click.option("--days", type=click.FloatRange(0), default=0.0, show_default=True, help="Keep entries used since then.")
def clean(days: float) -> None:
    """Delete the contents of the cache; they are built again when needed."""
    old = [entry for entry in cache.entries() if entry.idle >= days * 86400]
    for entry in old:
        cache.remove(entry)
    echo(f"{cache.cache_folder()}: deleted {len(old)} entries, {sum(entry.size for entry in old) / 1e6:.0f} MB")
