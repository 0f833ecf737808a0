"""A page as one self-contained HTML file, figures included, for a browser without a network and without scripts.

jinja2 escapes every value but our own SVG, and text of models and environments passes through `plain` too, so that no
control or direction character gets in.
"""

from __future__ import annotations

import io
import itertools
import re
from html import escape
from pathlib import Path

from . import figures
from .page import Page, Picture
from .text import plain

# Colours of figures that must differ on a dark page, and the variables of style.css that replace them.
THEMED = {
    figures.INK: "ink", figures.GRID: "line", "#ffffff": "paper", "#1d4ed8": "blue", "#d97706": "amber",
    "#9ca3af": "soft", "#be123c": "red", "#000000": "ink", "black": "ink",
}  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"


def render(page: Page) -> str | None:
    """The page as text; None without jinja2."""
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 - optional
    except ImportError:
        return None
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    numbers = itertools.count()
    environment.filters |= {"plain": plain, "svg": lambda picture, narrow=False: svg(picture, next(numbers), narrow)}
    return environment.get_template("page.html").render(page=page)


def svg(picture: Picture, number: int, narrow: bool = False) -> str:  # noqa: FBT001, FBT002 - a filter of the template
    """Figure `number` of a page as an SVG element in the page's colours; empty without matplotlib."""
    size, buffer = picture.narrow if narrow else picture.size, io.StringIO()
    if size is None or figures.save(buffer, picture.plot, size) is None:
        return ""
    text = buffer.getvalue()
    for colour, variable in THEMED.items():
        text = text.replace(f": {colour}", f": var(--{variable})")
    # ids of matplotlib are the same in every figure, and several figures stand in one page
    text = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>f{number}-", text[text.index("<svg") :])
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(picture.legend)}" ', 1)
