"""The pages of a folder of Markdown, HTML and text files, and their links to one another; bytes of a page as text."""

from __future__ import annotations

import codecs
import logging
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from internalize.errors import TaskError

from .bounded_html import CostlyPageError, read_bounded
from .html import Html

HTML = (".html", ".htm", ".xhtml")
MARKDOWN = (".md", ".markdown")
ENDINGS = (*HTML, *MARKDOWN, ".txt")
_DECLARED = re.compile(rb"<(?:\?xml[^>]*?encoding|meta[^>]*?charset)\s*=\s*[\"']?\s*([\w.:-]+)", re.IGNORECASE)
_NO_PAGES = frozenset({"node_modules", "__pycache__"})  # folders of tools; hidden folders are left out too
_LARGEST = 50_000_000  # bytes of a page
_REPLACED = "\ufffd"  # replaces bytes that are no character
_LOG = logging.getLogger(__name__)
_SURE = 0.5  # with less confidence in a guessed encoding, UTF-8 with a few errors is better


class Site:
    """A page for each file below `folder`, by its relative path. Raises TaskError if there is none.

    Hidden files and folders are no pages. A warning names files that cannot be read, in whole or in part.
    Links lead to such paths, or out of the folder. `inline` gives what stands in the text before a link to a page.
    """

    def __init__(self, folder: Path, inline: Callable[[str], str] = lambda _: "") -> None:
        if not folder.is_dir():
            raise TaskError(f"there is no folder {folder}")
        files = sorted(_files(folder))
        if not files:
            raise TaskError(f"{folder} holds no .md, .html or .txt file")
        self._inline = inline
        contents = dict(_contents({file.relative_to(folder).as_posix(): file for file in files}))
        self._paths = frozenset(contents)
        self._folded = {_folded(path): path for path in reversed(contents)}
        found = {path: self._page(path, data) for path, data in contents.items()}
        self.pages = {path: page for path, (page, _) in found.items()}
        if damaged := {path: count for path, (_, count) in found.items() if count}:
            first, count = next(iter(damaged.items()))
            _LOG.warning(
                "%s: %d of %d pages hold characters that cannot be read, such as %s with %d",
                folder, len(damaged), len(found), first, count,
            )  # fmt: skip

    def resolve(self, address: str) -> str | None:
        """The path of the page behind a link or a path, as a web server would find it; None if there is none."""
        if address in self._paths:
            return address
        try:
            parts = urlsplit(urljoin("file:///", address.strip()))
        except ValueError:
            return None
        if parts.scheme != "file" or parts.netloc:
            return None
        path = unquote(parts.path).strip("/")
        tries = [path, *(f"{path}{end}" for end in ENDINGS), *(f"{path}/index{end}".lstrip("/") for end in ENDINGS)]
        found = (name if name in self._paths else self._folded.get(_folded(name)) for name in tries)
        return next(filter(None, found), None)

    def _page(self, path: str, data: bytes) -> tuple[Html, int]:
        """The page, and how many of its characters cannot be read."""
        text, address, ending = decoded(data), f"file:///{quote(path)}", Path(path).suffix.lower()
        try:
            if ending in HTML:
                found = read_bounded(text, address, lambda link: self._before(path, link))
            else:
                links = read_bounded(_rendered(text), address).links if ending in MARKDOWN else ()
                found = Html("", plain(text), links)
        except CostlyPageError:
            _LOG.warning("%s takes too long to read; its page is empty", path)
            found = Html("", "", ())
        return found._replace(links=self._reachable(path, found.links)), unreadable(text, data)

    def _before(self, path: str, link: str) -> str:
        target = self.resolve(link)
        return self._inline(target) if target and target != path else ""

    def _reachable(self, path: str, links: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
        found: dict[str, str] = {}
        for said, link in links:
            target = self.resolve(link) if link.startswith("file:") else link
            if target and target != path:
                found.setdefault(target, target if said == link else said)
        return tuple((said, target) for target, said in found.items())


def _files(folder: Path) -> Iterator[Path]:
    """The files below a folder that may be pages."""
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name not in _NO_PAGES]
        files = (Path(place, name) for name in names if name[0] != ".")
        yield from (file for file in files if file.suffix.lower() in ENDINGS and file.is_file())


def _contents(files: Mapping[str, Path]) -> Iterator[tuple[str, bytes]]:
    """Each path with the file's content; a warning names files that cannot be read, which are left out."""
    failed = []
    for path, file in files.items():
        try:
            if file.stat().st_size <= _LARGEST:
                yield path, file.read_bytes()
            else:
                failed.append(f"{path} (more than {_LARGEST:,} bytes)")
        except OSError as error:
            failed.append(f"{path} ({error.strerror})")
    if failed:
        _LOG.warning(
            "%d of %d files cannot be read and are no pages: %s", len(failed), len(files), ", ".join(failed[:3])
        )


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()


def _rendered(markdown: str) -> str:
    from markdown_it import MarkdownIt  # noqa: PLC0415 - only for folders with Markdown

    return str(MarkdownIt().render(markdown))


def plain(text: str) -> str:
    """The text without blank lines."""
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def decoded(data: bytes, label: str = "") -> str:
    """The text of a page, by its byte order mark, else the server's label (one of the WHATWG's), else UTF-8 if it is
    valid UTF-8, else the encoding that the page declares, else a guess from its bytes.
    """
    import webencodings  # noqa: PLC0415

    named = webencodings.lookup(label) or (webencodings.UTF8 if _is_utf8(data) else None)
    if named is None and (found := _DECLARED.search(data[:4096])):
        named = webencodings.lookup(found[1].decode())
    return _guessed(data) if named is None else str(webencodings.decode(data, named)[0])


def unreadable(text: str, data: bytes) -> int:
    """How many characters of `text` stand for bytes of `data` that are invalid in its encoding."""
    return max(0, text.count(_REPLACED) - data.count(_REPLACED.encode()))


def _is_utf8(data: bytes) -> bool:
    """Whether the data is certainly UTF-8; the last character may be cut off."""
    try:
        codecs.utf_8_decode(data)
    except UnicodeDecodeError:
        return False
    return not {0, 27} & set(data)  # UTF-16 and ISO-2022, which make valid UTF-8 too


def _guessed(data: bytes) -> str:
    import chardet  # noqa: PLC0415

    guess = chardet.detect(data, encoding_era=chardet.EncodingEra.MODERN_WEB, prefer_superset=True, compat_names=False)
    text = data.decode("utf-8", "replace")
    if guess["encoding"] is None:
        return text
    errors, beyond = text.count("\ufffd"), sum(not character.isascii() for character in text)
    if guess["confidence"] < _SURE and errors * 4 <= beyond:
        return text  # UTF-8 with some errors
    return data.decode(guess["encoding"], "replace")
