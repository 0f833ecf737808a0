"""The report as a table in the terminal.

Left out: episodes and pool items (report.md has them). What must not change: text that came from a
model or a file is printed as plain text, never read as markup or control codes.
"""

from __future__ import annotations

from collections.abc import Collection

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .headline import summary
from .run_report import RunReport
from .signs import sign_lines
from .tables import FAMILY_HEAD, SUITE_HEAD, Row, family_rows, iteration_table, suite_rows
from .text import one_line


def print_report(report: RunReport, console: Console) -> None:
    """Print the sentence, the iterations, the other suites and the cautions."""
    console.print(plain_text(summary(report)))
    if report.iterations:
        print_table(*iteration_table(report), console)
    for head, rows in ((SUITE_HEAD, suite_rows(report)), (FAMILY_HEAD, family_rows(report))):
        print_table(head, rows, console)
    for line in sign_lines(report):
        console.print(plain_text(f"! {line}", style="yellow"))


def print_table(head: Row, rows: list[Row], console: Console, text: Collection[int] = (0,)) -> None:
    """A table whose columns number `text` are text; no rows, no table."""
    if not rows:
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, name in enumerate(head):
        table.add_column(name, justify="left" if number in text else "right", header_style="bold", overflow="fold")
    for row in rows:
        table.add_row(*(plain_text(cell) for cell in row))
    console.print(table)


def plain_text(text: str, style: str = "") -> Text:
    """One line of untrusted text: nothing in it is markup or control."""
    return Text(one_line(text, 2000), style=style)
