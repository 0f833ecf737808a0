"""HTML as text for a policy: one line for each block or table row, Markdown headings and lists, verbatim code.

A page is untrusted text: it is parsed as browsers parse it (HTML 5), and nothing in it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import urldefrag, urljoin

_SPACES = re.compile(r"[ \t\n\r\f\v]+")
# Possessive: else an unclosed tag takes time quadratic in its length.
_TAG = re.compile(r"<(/?)([a-z][^\s<>/]*+)[^<>]*+>", re.IGNORECASE)
_XHTML_EMPTY = re.compile(r"<(script|style|title|textarea|iframe|noscript)\b([^<>]*)/>", re.IGNORECASE)
_WRAPPED = re.compile(r"</?(?:noscript|noframes|frameset|frame|template|iframe)\b[^<>]*>", re.IGNORECASE)
_DEEPEST = 500  # most open elements, about as in browsers; the parser's time grows with their number
_NO_END = frozenset(  # elements without an end tag, or with an implied one: they cannot nest deeply
    "area base br col embed hr img input link meta param source track wbr p li dt dd td th tr thead tbody tfoot option "  # noqa: SIM905
    "optgroup rt rp colgroup caption a b big code em font i nobr s small strike strong tt u".split()
)
_INLINE = frozenset(
    "a abbr acronym b bdi bdo big cite code data del dfn em font i img input ins kbd label mark math meter nobr output "  # noqa: SIM905
    "picture q rp rt ruby s samp small source span strike strong sub sup time tt u var wbr".split()
)
_NEVER = "script, style, svg, head, title, annotation, annotation-xml, audio, video, canvas, object"
_ASIDE = "nav, [role=navigation], noscript, noframes, template, iframe, dialog:not([open])"  # left out if there is more
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_SOLID = _HEADINGS | {"pre", "textarea", "table"}  # a cell with one of them is not put into a line
_MARKED = _HEADINGS | {"li", "dd"}
_NO_PAGE = ("javascript:", "mailto:", "data:", "tel:", "about:")


class Html(NamedTuple):
    """The text of a page; `links` are (text, address), those of the navigation last."""

    title: str
    text: str
    links: tuple[tuple[str, str], ...]


def read(html: str, url: str, inline: Callable[[str], str] = lambda _: "") -> Html:
    """The page of an HTML text found at `url`; `inline` gives the text before a link to an address.

    Navigation, and text that only some browsers show, are left out unless there is nothing else.
    """
    if html.lstrip("\ufeff \n\r\t").startswith("<?xml"):  # they end there in XML, but never in HTML
        html = _XHTML_EMPTY.sub(r"<\1\2></\1>", html)
    html = _flattened(html)
    found = _read(html, url, inline, _ASIDE)
    if found.text:
        return found
    everything = _read(_WRAPPED.sub(" ", html), url, inline, "")
    return everything._replace(title=found.title, links=tuple(dict.fromkeys(found.links + everything.links)))


def joined(base: str, link: str) -> str:
    """The absolute address of a link; `base` for an invalid address."""
    try:
        return urljoin(base, link.strip())
    except ValueError:
        return base


def _flattened(html: str) -> str:
    """The page without tags that nest too deeply; their text stays."""
    depth = 0

    def kept(tag: re.Match[str]) -> str:
        nonlocal depth
        if tag[2].lower() in _NO_END:
            return tag[0]
        inside, depth = depth, max(0, depth - 1) if tag[1] else depth + 1
        return tag[0] if max(inside, depth) <= _DEEPEST else " "

    return _TAG.sub(kept, html)


def _read(html: str, url: str, inline: Callable[[str], str], aside: str) -> Html:
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415 - only needed here

    tree = LexborHTMLParser(html)
    title = next((node.text() for node in tree.css("title") if node.parent and node.parent.tag != "svg"), "")
    base = joined(url, next((node.attributes["href"] or "" for node in tree.css("base[href]")), ""))
    navigation: dict[str, str] = {}
    for node in reversed(tree.css(f"{_NEVER}, {aside}" if aside else _NEVER)):  # inner elements first
        navigation = _links(node, base) | navigation
        node.decompose()
    links = _links(tree.root, base)
    links |= {address: text for address, text in navigation.items() if not links.get(address)}
    text = _Text(lambda link: inline(_address(link, base))).of(tree.root)
    return Html(_plain(title), text, tuple((said or address, address) for address, said in links.items()))


def _plain(text: str) -> str:
    return " ".join(text.split())


def _links(root: Any, base: str) -> dict[str, str]:
    """The texts of the links below `root`, by their address."""
    found: dict[str, str] = {}
    around = {link.mem_id for link in root.css("a:has(a)")}  # only as in SVG: nested links would be read repeatedly
    for link in root.css("a[href], area[href], iframe[src], frame[src]"):
        if address := _address(link, base):
            others = [link.attributes.get(name) or "" for name in ("aria-label", "title", "alt", "name")]
            if link.mem_id not in around:
                others[:0] = [link.text(), " ".join(image.attributes["alt"] or "" for image in link.css("img[alt]"))]
            said = map(_plain, others)
            found[address] = found.get(address) or next(filter(None, said), "")
    return found


def _address(link: Any, base: str) -> str:
    """The address of a link; "" if it leads to no page."""
    address = link.attributes.get("href") or link.attributes.get("src") or ""
    found = urldefrag(joined(base, address))[0] if address else ""
    return "" if found.lower().startswith(_NO_PAGE) else found


class _Lines:
    """Text under construction, line by line."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.cells: list[_Lines] = []  # cells of the current row
        self.solid = False
        self._open, self._mark = "", ""

    def add(self, text: str) -> None:
        text = _SPACES.sub(" ", text)
        self._open += text.lstrip(" ") if not self._open or self._open.endswith(" ") else text

    def end(self, mark: str | None = None) -> None:
        """End the line; `mark` begins the next one."""
        if self._open.strip():
            self.done.append(self._mark + self._open.strip())
            self._mark = ""
        self._open, self._mark = "", self._mark if mark is None else mark

    def end_row(self) -> None:
        cells, self.cells = self.cells, []
        if any(cell.solid for cell in cells):
            self.done += [line for cell in cells for line in cell.done]
        elif any(cell.done for cell in cells):
            self.done.append(" | ".join(" ".join(cell.done) for cell in cells).strip())


class _Text:
    """One walk through a page; `inline` gives the text before a link."""

    def __init__(self, inline: Callable[[Any], str]) -> None:
        self._inline = inline
        self._blocks = [_Lines()]
        self._lists: list[int | None] = []  # the next number of each open list, None for bullets

    def of(self, root: Any) -> str:
        """Walk depth first, without recursion, because pages nest deeply."""
        path: list[tuple[Any, Iterator[Any]]] = [(root, root.iter(include_text=True))]
        while path:
            node, children = path[-1]
            child = next(children, None)
            if child is None:
                self._leave(node.tag)
                path.pop()
            elif child.is_text_node:
                self._blocks[-1].add(child.text_content or "")
            elif child.is_element_node and self._enter(child, child.tag):
                path.append((child, child.iter(include_text=True)))
        return "\n".join(self._blocks[0].done).strip("\n")

    def _enter(self, node: Any, tag: str) -> bool:
        """Whether the content of an element is read."""
        block = self._blocks[-1]
        if tag == "img":
            block.add(node.attributes.get("alt") or "")
        elif tag == "a":
            block.add((" " if node.prev is not None and node.prev.tag == "a" else "") + self._inline(node))
        elif tag not in _INLINE:
            block.solid = block.solid or tag in _SOLID
            block.end(self._mark(node, tag))
            if tag in {"pre", "textarea"}:
                block.done += _code(node)
                return False
            if tag in {"td", "th"}:
                self._blocks.append(_Lines())
        return True

    def _mark(self, node: Any, tag: str) -> str | None:
        """The mark before the first line of an element."""
        if tag in {"ul", "ol", "menu"}:
            start = node.attributes.get("start") or ""
            self._lists.append(None if tag != "ol" else int(start) if start.isdecimal() else 1)
        elif tag == "li" and self._lists:
            number = self._lists.pop()
            self._lists.append(None if number is None else number + 1)
            return "  " * (len(self._lists) - 1) + ("- " if number is None else f"{number}. ")
        elif tag in _MARKED:
            return {"li": "- ", "dd": "  "}.get(tag) or "#" * int(tag[1]) + " "
        return None

    def _leave(self, tag: str) -> None:
        if tag in _INLINE:
            return
        block = self._blocks[-1]
        block.end("" if tag in _MARKED else None)
        if tag in {"td", "th"} and len(self._blocks) > 1:
            self._blocks.pop()
            self._blocks[-1].cells.append(block)
        elif tag == "tr":
            block.end_row()
        elif tag in {"ul", "ol", "menu"}:
            self._lists.pop()


def _code(root: Any) -> list[str]:
    """The lines of an element with significant white space; elements in it may be lines too."""
    text = ""
    for node in root.traverse(include_text=True):
        block = node if node.is_element_node else node.prev
        breaks = block is not None and block.is_element_node and block.tag not in _INLINE and block.tag != "br"
        if breaks and text and not text.endswith("\n"):
            text += "\n"
        text += (node.text_content or "") if node.is_text_node else "\n" if node.tag == "br" else ""
    text = text.strip("\n").rstrip()
    return text.split("\n") if text else []
