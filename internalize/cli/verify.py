"""`internalize verify`: checks that the files of a run are unchanged since its stages wrote them."""

from __future__ import annotations

from pathlib import Path

import click

from internalize.errors import DataError

from .output import echo


@click.command("verify")
@click.argument("run_dir", type=click.Path(path_type=Path, file_okay=False))
def verify_command(run_dir: Path) -> None:
    """Compare the files of a run with their digests.

    This includes weights. Nothing is changed.
    """
    from internalize.runs.marks import verify
    from internalize.runs.store import read_run

    read_run(run_dir)
    found = verify(run_dir)
    echo(f"{run_dir}: {len(found.checked) - len(found.faults)} files are as their stages wrote them")
    if found.old:
        echo(f"not checked: what {len(found.old)} stages wrote, which a version without digests marked")
    if found.unmarked:
        echo(f"not checked: {len(found.unmarked)} files that no finished stage names ({_few(found.unmarked)})")
    for fault in found.faults:
        echo(f"{run_dir}/{fault}")
    if found.faults:
        raise DataError(f"{run_dir}: {len(found.faults)} of {len(found.checked)} files are missing or were changed")


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
