"""What a report shows, as data: a page of sections whose parts `terminal`, `markdown` and `html` each know how to show.

Every text in a page may come from a model, an environment or a recipe. Escaping it is the renderers' work alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, kw_only=True)
class Part:
    """Anything that stands in a section; `place` says where. Pages are Markdown and HTML."""

    place: Literal["pages", "everywhere", "terminal"] = "pages"

    @property
    def kind(self) -> str:
        """The name by which the template of HTML knows it."""
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
    """Rows, each with a cell for every column; `text` and `code` name the columns that are no numbers.

    A number is made here and holds no text of others. `fits`: columns that a terminal has room for. `folded`: a title
    that HTML hides the table behind.
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
    """What `plot` draws into an empty figure of `size` inches; HTML holds it, Markdown shows `file`, if it has one.

    `narrow`: the size for a telephone, which HTML shows there; `plot` looks at the width of its figure.
    """

    plot: Callable[[Any], None]
    size: tuple[float, float]
    legend: str
    file: str = ""
    narrow: tuple[float, float] | None = None


@dataclass(frozen=True)
class Code(Part):
    """Text shown as it is. `folded`: a title that HTML hides it behind."""

    text: str
    folded: str


@dataclass(frozen=True)
class Line:
    """What a policy was shown, did or saw at one step."""

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
    """The parts that hold anything under a title; "" = none is shown. `folded`: HTML shows them on demand."""

    def __init__(self, title: str, *parts: Part | None, folded: bool = False) -> None:
        self.title, self.folded = title, folded
        self.parts = tuple(part for part in parts if part)

    @property
    def anchor(self) -> str:
        """What links to the section name; "" without a title."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")[:60]


class Page:
    """The sections that hold anything, under the title of all and one line about it.

    `refresh`: seconds after which a browser reads the page again, because more is to come; 0 = never.
    """

    def __init__(self, title: str, *sections: Section, facts: str = "", refresh: int = 0) -> None:
        self.title, self.facts, self.refresh = title, facts, refresh
        self.sections = tuple(section for section in sections if section.parts)
