"""Print the report of a run and write its files."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from . import html, markdown, run_report, terminal


def publish(run_dir: Path) -> None:
    """Print the report of a run; write report.md, and with jinja2 report.html, with matplotlib figure.png, into it."""
    terminal.print_report(run_report.load(run_dir), Console())
    for path in write(run_dir):
        Console(stderr=True).print(f"Written: {path}", highlight=False, soft_wrap=True)


def write(run_dir: Path) -> list[Path]:
    """Write the files and print nothing. Returns what was written."""
    report = run_report.load(run_dir)
    return [path for path in (markdown.write(report), html.write(report)) if path is not None]
