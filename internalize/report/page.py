"""A report as data: a page of sections, whose parts `terminal`, `markdown` and `html` can render.

Every text in a page may come from a model, an environment or a recipe. Only the renderers escape it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Part:
    """Anything in a section; `place` says where it is shown. Pages are Markdown and HTML."""

    place: Literal["pages", "everywhere", "terminal"] = "pages"

    @property
    def kind(self) -> str:
        """The part's name in the HTML template."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Text(Part):
    """A paragraph."""

    text: str
    look: Literal["plain", "lead", "soft", "warning"] = "plain"

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class Table(Part):
    """Rows, each with a cell for every column; `text` and `code` name the columns that are not numbers.

    Numbers are made by this package and need no escaping. `fits`: columns for a terminal. `folded`: a title under which
    HTML hides the table.
    """

    rows: Sequence[Mapping[str, str]]
    text: Collection[str] = ()
    code: Collection[str] = ()
    note: str = ""
    fits: int | None = None
    folded: str = ""

    @property
    def columns(self) -> dict[str, Literal["number", "text", "code"]]:
        """Names of the columns and what they hold."""
        names = self.rows[0] if self.rows else ()
        return {name: "text" if name in self.text else "code" if name in self.code else "number" for name in names}

    def __bool__(self) -> bool:
        return bool(self.rows)


@dataclass(frozen=True)
class Item:
    """One line of a list; `mark` says whether it came or went, `link` names a page beside this one."""

    text: str
    mark: Literal["", "+", "-"] = ""
    code: str = ""
    link: str = ""


@dataclass(frozen=True)
class Items(Part):
    """A list."""

    items: tuple[Item, ...]
    title: str = ""

    def __bool__(self) -> bool:
        return bool(self.items)


@dataclass(frozen=True)
class Picture(Part):
    """`plot` draws it into an empty figure of `size` inches; HTML embeds it, Markdown shows `file`, if it has one.

    `narrow`: the size for a phone in HTML; `plot` checks the width of its figure.
    """

    plot: Callable[[Any], None]
    size: tuple[float, float]
    legend: str
    file: str = ""
    narrow: tuple[float, float] | None = None


@dataclass(frozen=True)
class Code(Part):
    """Verbatim text. `folded`: a title under which HTML hides it."""

    text: str
    folded: str


@dataclass(frozen=True)
class Line:
    """What a policy saw, did or got at one step."""

    kind: Literal["experience", "action", "invalid", "result"]
    text: str
    note: str = ""


@dataclass(frozen=True)
class Episode:
    """One column of episodes side by side."""

    title: str
    outcome: str
    won: bool
    steps: tuple[tuple[Line, ...], ...]


@dataclass(frozen=True)
class Episodes(Part):
    """Episodes of one task, to be compared step by step."""

    question: str
    episodes: tuple[Episode, ...]


class Section:
    """Non-empty parts under a title; "" = no title. `folded`: HTML shows them on demand."""

    def __init__(self, title: str, *parts: Part | None, folded: bool = False) -> None:
        self.title, self.folded = title, folded
        self.parts = tuple(part for part in parts if part)

    @property
    def anchor(self) -> str:
        """The id for links to the section; "" without a title."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60]


class Page:
    """Non-empty sections under a common title and one line about the page.

    `refresh`: seconds after which a browser reloads the page of a running run; 0 = never.
    """

    def __init__(self, title: str, *sections: Section, facts: str = "", refresh: int = 0) -> None:
        self.title, self.facts, self.refresh = title, facts, refresh
        self.sections = tuple(section for section in sections if section.parts)
