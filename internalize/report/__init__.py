"""Reports: terminal, Markdown and a figure from a run directory."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def publish(run_dir: Path) -> None:
    """Print the report of a run; write report.md, and with jinja2 report.html, with matplotlib figure.png, into it."""
    from . import data, terminal  # noqa: PLC0415 - the parts import this package

    terminal.print_report(data.load(run_dir), Console())
    for path in write(run_dir):
        Console(stderr=True).print(f"Written: {path}", highlight=False, soft_wrap=True)


def write(run_dir: Path) -> list[Path]:
    """The files alone, and nothing printed: what was written."""
    from . import data, html, markdown  # noqa: PLC0415 - the parts import this package

    report = data.load(run_dir)
    return [path for path in (markdown.write(report), html.write(report)) if path is not None]
