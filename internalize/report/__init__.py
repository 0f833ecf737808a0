"""Reports: terminal, Markdown and a figure from a run directory."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console


def publish(run_dir: Path) -> None:
    """Print the report of a run; write report.md, and with jinja2 report.html, with matplotlib figure.png, into it."""
    from . import data, html, markdown, terminal  # noqa: PLC0415 - the parts import this package

    report = data.load(run_dir)
    terminal.print_report(report, Console())
    for path in (markdown.write(report), html.write(report)):
        if path is not None:
            Console(stderr=True).print(f"Written: {path}", highlight=False, soft_wrap=True)


def write(run_dir: Path) -> None:
    """The same files, and nothing printed: the report of one run of a study."""
    from . import data, html, markdown  # noqa: PLC0415

    report = data.load(run_dir)
    markdown.write(report)
    html.write(report)
