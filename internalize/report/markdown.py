"""A page as Markdown. Text goes through `markdown_text`, `code_span` or `fenced`, and only cells of numbers do not."""

from __future__ import annotations

from pathlib import Path

from . import figures
from .page import Code, Episode, Episodes, Item, Items, Line, Page, Part, Picture, Section, Table, Text
from .text import code_span, fenced, markdown_text

LONGEST_LIST = 100  # items in a list; the run's files have all of them


def render(page: Page, folder: Path | None = None) -> str:
    """The Markdown text. Figures are drawn into `folder`, where the text is to lie; None = without figures."""
    facts = markdown_text(page.facts, 1000)
    parts = [f"# {markdown_text(page.title)}", facts, *(render_section(section, folder) for section in page.sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def render_section(section: Section, folder: Path | None = None) -> str:
    """One section under its title."""
    shown = [text for part in section.parts if part.place != "terminal" and (text := render_part(part, folder))]
    title = [f"## {markdown_text(section.title)}"] if section.title and shown else []
    return "\n\n".join([*title, *shown])


def render_part(part: Part, folder: Path | None = None) -> str:
    """One part; "" for nothing."""
    if isinstance(part, Text):
        return markdown_text(part.text, 4000)
    if isinstance(part, Table):
        return "\n\n".join(filter(None, [_table(part), markdown_text(part.note, 4000) if part.rows else ""]))
    if isinstance(part, Items):
        return _items(part)
    if isinstance(part, Code):
        return fenced(part.text, 40_000)
    if isinstance(part, Picture):
        return _picture(part, folder)
    if isinstance(part, Episodes):
        return "\n\n".join([fenced(part.question, 1200), *map(_episode, part.episodes)])
    raise TypeError(f"a page has no part of the kind {part.kind}")


def _table(part: Table) -> str:
    if not part.rows:
        return ""
    kinds = part.columns
    rule = "|".join("--:" if kind == "number" else ":--" for kind in kinds.values())
    rows = [[_cell(row[name], kind) for name, kind in kinds.items()] for row in part.rows]
    head, *body = (f"| {' | '.join(cells)} |" for cells in [map(markdown_text, kinds), *rows])
    return "\n".join([head, f"|{rule}|", *body])


def _cell(cell: str, kind: str) -> str:
    if kind == "number":
        return cell
    return code_span(cell) if kind == "code" else markdown_text(cell, 600)


def _items(part: Items) -> str:
    lines = [f"- {_item(item)}" for item in part.items[:LONGEST_LIST]]
    left = len(part.items) - LONGEST_LIST
    more = [f"- {left} more are in the files of the run."] if left > 0 else []
    title = [f"{markdown_text(part.title)}:", ""] if part.title else []
    return "\n".join([*title, *lines, *more])


def _item(item: Item) -> str:
    mark = {"+": "new: ", "-": "gone: ", "": ""}[item.mark]
    text = markdown_text(item.text, 600)
    linked = f"[{text}]({item.link})" if item.link else text
    return f"{mark}{linked}{f' {code_span(item.code)}' if item.code else ''}"


def _picture(part: Picture, folder: Path | None) -> str:
    if not part.file or folder is None:
        return ""
    drawn = figures.save(folder / part.file, part.plot, part.size)
    return f"![{part.legend}]({part.file})" if drawn else figures.NOTE


def _episode(episode: Episode) -> str:
    script = (_script(number, line) for number, step in enumerate(episode.steps, start=1) for line in step)
    title = markdown_text(episode.title[:1].upper() + episode.title[1:])
    return "**{}**: {}\n\n{}".format(title, episode.outcome, fenced("\n".join(script), 8000))


def _script(number: int, line: Line) -> str:
    text = line.text.replace("\n", "\n      ")
    if line.kind == "experience":
        return f"   [{line.note}]\n   [{text}]"
    if line.kind == "result":
        return f"   -> {text}"
    return f"{number}. {text}{'   (no valid action)' if line.kind == 'invalid' else ''}"
