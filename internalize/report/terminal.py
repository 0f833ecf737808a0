"""Prints a page in the terminal: the parts that fit, without section titles.

Text of models and files is printed as plain text, never read as markup or control codes.
"""

from __future__ import annotations

from typing import Literal

from rich import box
from rich.console import Console, Group
from rich.table import Table as RichTable
from rich.text import Text as RichText

from .page import Episode, Episodes, Items, Line, Page, Part, Table, Text
from .text import one_line, plain

NARROWEST = 36  # fewest terminal columns of an episode
_LOOKS = {"warning": "yellow"}
_JUSTIFY: dict[str, Literal["left", "right"]] = {"number": "right", "text": "left", "code": "left"}
_LINES = {"experience": "yellow", "action": "cyan", "invalid": "red", "result": "dim"}


def print_page(page: Page, console: Console) -> None:
    """Print the parts of a page for the terminal."""
    for section in page.sections:
        for part in section.parts:
            if part.place != "pages":
                print_part(part, console)


def print_part(part: Part, console: Console) -> None:
    """Print one part, unless its kind is only for pages."""
    if isinstance(part, Text):
        console.print(plain_text(part.text, _LOOKS.get(part.look, "")))
    elif isinstance(part, Items):
        for item in part.items:
            console.print(plain_text(f"! {item.text}", style="yellow"))
    elif isinstance(part, Table) and part:
        _print_table(part, console)
    elif isinstance(part, Episodes):
        console.print(plain_text(part.question, style="bold"))
        fitting = max(1, console.width // NARROWEST)
        for start in range(0, len(part.episodes), fitting):
            console.print(_side_by_side(part.episodes[start : start + fitting]))


def _print_table(part: Table, console: Console) -> None:
    table = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    names = list(part.columns)[: part.fits]
    for name in names:
        table.add_column(name, justify=_JUSTIFY[part.columns[name]], header_style="bold", overflow="fold")
    for row in part.rows:
        table.add_row(*(plain_text(row[name]) for name in names))
    console.print(table)


def _side_by_side(episodes: tuple[Episode, ...]) -> RichTable:
    """One column per episode, one row per step."""
    table = RichTable(expand=True, show_lines=True)
    for one in episodes:
        table.add_column(plain_text(f"{one.title}: {one.outcome}"), ratio=1, overflow="fold", header_style="bold")
    for number in range(max(len(one.steps) for one in episodes)):
        table.add_row(*(Group(*map(_line, one.steps[number] if number < len(one.steps) else ())) for one in episodes))
    return table


def _line(line: Line) -> RichText:
    return RichText(plain(line.text), style=_LINES[line.kind])


def plain_text(text: str, style: str = "") -> RichText:
    """One line of untrusted text: nothing in it is markup or control."""
    return RichText(one_line(text, 4000), style=style)
