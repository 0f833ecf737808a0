"""Pages of documentation: built by inspecting packages, or read from a folder of Markdown, HTML and text.

Pages are short, because every later step pays for every token of an observation: lists of parameters, methods and lines
are cut into numbered parts, each of which names the next one. Only the first words of a docstring are shown.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from internalize.environments.html import Html
from internalize.environments.site import Site
from internalize.errors import TaskError
from internalize.records import Record
from internalize.runs.cache import cache_folder
from internalize.runs.store import write_atomic

from . import python_api as inspection

PARAMETERS_PER_PART = 3
METHODS_PER_PART = 6
LINES_PER_PART = 6
LONGEST_LINE = 200  # characters
_ABOUT_WORDS = 7
_FORMAT = "3"  # to be raised when pages change, so that cached ones are rebuilt


class Page(Record):
    """One documented name. `parts` are the texts shown; part n > 1 is visited as `name#n`."""

    name: str
    kind: str
    module: str
    parts: tuple[str, ...]
    about: str = ""
    params: tuple[tuple[str, str | None], ...] = ()
    bases: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    target: str = ""


def package_pages(packages: Sequence[str]) -> dict[str, Page]:
    """Pages of installed packages by name, inspected once and cached by version. Raises TaskError if there are none."""
    cache = cache_folder() / f"docs-{_versions(packages)}.jsonl"
    if not cache.is_file():
        command = [sys.executable, "-m", inspection.__name__, *packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603
        if done.returncode or not done.stdout.strip():
            cause = (done.stderr.strip().splitlines() or ["they have no public names"])[-1]
            raise TaskError(f"docs: no documentation could be built for {', '.join(packages)} ({cause})")
        cache.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cache, done.stdout)
    rows = [json.loads(line) for line in cache.read_text(encoding="utf-8").splitlines()]
    names = {row["name"] for row in rows}
    return {row["name"]: _page(row, names) for row in rows}


def _versions(packages: Sequence[str]) -> str:
    parts = [_FORMAT, sys.version.split()[0]]
    for package in packages:
        try:
            parts.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            parts.append(package)
    return hashlib.sha256("|".join(parts).encode()).hexdigest()[:12]


def _page(row: dict[str, Any], names: set[str]) -> Page:
    params = [(name, default) for name, default in row.get("params", [])]
    bases = [base for base in row.get("bases", []) if base in names]
    lines: list[str] = []
    if row["kind"] == "alias":
        lines.append(f"Alias of {row['target']}")
    elif about := " ".join(row["about"].split()[:_ABOUT_WORDS]):
        lines.append(f"About: {about}")
    if bases:
        lines.append(f"Bases: {', '.join(bases)}")
    shown = [name if default is None else f"{name}={default}" for name, default in params]
    lists = [("Parameters", shown, PARAMETERS_PER_PART), ("Methods", row.get("methods", []), METHODS_PER_PART)]
    return Page(
        name=row["name"],
        kind=row["kind"],
        module=row["module"],
        parts=_parts(row["name"], f"{row['name']} ({row['kind']})", lines, lists),
        about=row["about"],
        params=tuple(params),
        bases=tuple(bases),
        methods=tuple(row.get("methods", [])),
        target=row.get("target", ""),
    )


def _parts(name: str, title: str, lines: list[str], lists: list[tuple[str, list[str], int]]) -> tuple[str, ...]:
    chunks = [f"{label}: {', '.join(chunk)}" for label, items, size in lists for chunk in _chunked(items, size)]
    first = [title, *lines, *chunks[:1]]
    bodies = ["\n".join(first), *chunks[1:]]
    return with_more(name, bodies)


def with_more(name: str, bodies: Sequence[str]) -> tuple[str, ...]:
    """The bodies, each but the last with a line that names the next part."""
    last = len(bodies) - 1
    return tuple(body if i == last else f"{body}\nMore: {name}#{i + 2}" for i, body in enumerate(bodies))


def _chunked(items: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (items[i : i + size] for i in range(0, len(items), size))


def folder_pages(folder: Path) -> dict[str, Page]:
    """Pages of every .md, .html and .txt file below `folder`, named by relative path. Raises TaskError if none."""
    pages = Site(folder, lambda path: f"[{path}] ").pages
    return {path: _file_page(path, found) for path, found in pages.items()}


def _wrapped(line: str) -> list[str]:
    """A line in parts of at most LONGEST_LINE characters, cut between words."""
    if len(line) <= LONGEST_LINE:
        return [line] if line.strip() else []
    return textwrap.wrap(line, LONGEST_LINE, replace_whitespace=False, expand_tabs=False, break_on_hyphens=False)


def _file_page(path: str, found: Html) -> Page:
    lines = found.text.split("\n") if found.text else []
    if found.title and (not lines or found.title not in lines[0]):
        lines.insert(0, found.title)
    wrapped = [part for line in lines for part in _wrapped(line)]
    bodies = ["\n".join(chunk) for chunk in _chunked(wrapped, LINES_PER_PART)] or [""]
    bodies[0] = f"{path}\n{bodies[0]}"
    return Page(name=path, kind="file", module=path, parts=with_more(path, bodies), about=" ".join(wrapped))
