"""A page as one self-contained HTML file, figures included, for a browser without a network and without scripts.

jinja2 escapes every value but our own SVG, and text of models and environments passes through `plain` too, so that no
control or direction character gets in.
"""

from __future__ import annotations

import io
from pathlib import Path

from . import figures
from .page import Page, Picture
from .text import plain

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
    environment.filters |= {"plain": plain, "svg": svg}
    return environment.get_template("page.html").render(page=page)


def svg(picture: Picture) -> str:
    """The figure as an SVG element; empty without matplotlib."""
    buffer = io.StringIO()
    if figures.save(buffer, picture.plot, picture.size) is None:
        return ""
    text = buffer.getvalue()
    return text[text.index("<svg") :]
