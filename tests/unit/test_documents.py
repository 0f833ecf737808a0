"""The documents: every link and anchor leads somewhere, and every command in them is one that there is."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from markdown_it import MarkdownIt

from internalize.cli.main import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "AGENTS.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
IDS = [str(page.relative_to(ROOT)) for page in PAGES]


def anchors(page: Path) -> set[str]:
    """The anchors that a Markdown host makes of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[str]:
    for block in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for token in block.children or ():
            found = token.attrs.get("href") or token.attrs.get("src")
            if found:
                yield str(found)


def commands(page: Path) -> Iterator[str]:
    """What stands on a line of code after `internalize`."""
    for block in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if block.type in {"code_block", "fence"} and block.info in {"", "sh", "bash", "console"}:
            lines = block.content.replace("\\\n", " ").splitlines()
            yield from (line for line in lines if re.match(r"\$? *internalize [a-z]", line))


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in links(page):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in {"log.md", "CHANGELOG.md"}])
def test_every_command_is_one_that_there_is(page: Path) -> None:
    for line in commands(page):
        text = re.split(r"  +|#", line.removeprefix("$").strip())[0].replace("[", "").replace("]", "")
        if "|" in text or "..." in text:
            continue  # a summary of several commands
        _, *words = shlex.split(text)
        command: click.Command = cli
        while isinstance(command, click.Group):
            assert words[0] in command.commands, line
            command, words = command.commands[words[0]], words[1:]
        try:
            command.make_context(command.name, list(words), resilient_parsing=True)
        except click.NoSuchOption as error:
            pytest.fail(f"{line}: {error.message}")


def test_the_site_has_every_page(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra 'docs'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    nav = (ROOT / "mkdocs.yml").read_text().partition("nav:")[2]
    for page in (ROOT / "docs").glob("*.md"):
        assert f" {page.name}\n" in nav, f"{page.name} is not in the contents"
        assert (tmp_path / "site" / ("index.html" if page.stem == "index" else f"{page.stem}/index.html")).is_file()
