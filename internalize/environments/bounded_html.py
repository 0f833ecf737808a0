"""Parses untrusted pages in a process with limits of time and memory.

The parser takes quadratic time for some constructs (a tag with 200,000 attributes, say), and C code cannot be
interrupted. A page that is too small to take more than about a second is parsed in this process.
"""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable

from .html import Html, read

_MARKED = re.compile("\ue000([^\ue000\ue001]*)\ue001")  # an address; marks where the text before a link belongs
_SMALL = 100_000  # characters
_SECONDS = 20  # seconds of processor time; ordinary pages of 2 MB take about two
_MEMORY = 4 << 30  # bytes of addresses


class CostlyPageError(Exception):
    """The page takes more time or memory than allowed."""


def read_bounded(html: str, url: str, inline: Callable[[str], str] | None = None) -> Html:
    """As `html.read`. Raises CostlyPageError."""
    if len(html) <= _SMALL:
        return read(html, url, inline or (lambda _: ""))
    child = subprocess.run(  # noqa: S603 - this interpreter and this module
        [sys.executable, "-m", __name__, str(_SECONDS)],
        input=json.dumps([html, url, bool(inline)]).encode(),
        capture_output=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # so that it gets no key of the user
        check=False,
    )
    if child.returncode:
        raise CostlyPageError
    title, text, links = json.loads(child.stdout)
    if inline:
        text = _MARKED.sub(lambda found: inline(found[1]), text)
    return Html(title, text, tuple((said, address) for said, address in links))


def _main() -> None:
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    html, url, marked = json.load(sys.stdin)
    json.dump(read(html, url, lambda link: f"\ue000{link}\ue001" if marked else ""), sys.stdout)


if __name__ == "__main__":
    _main()
