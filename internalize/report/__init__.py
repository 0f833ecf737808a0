"""Reports: terminal, Markdown and a figure from a run directory."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def publish(run_dir: Path) -> None:
    """Print the report of a run and write report.md and, where matplotlib is installed, figure.png into it."""
    from . import data, markdown, terminal  # noqa: PLC0415 - the parts import this package

    report = data.load(run_dir)
    terminal.print_report(report, Console())
    path = markdown.write(report)
    Console(stderr=True).print(f"Written: {path}", highlight=False, soft_wrap=True)
