"""Pages of others, read in a process with bounds of its own.

Some constructs (a tag with 200,000 attributes, say) take a parser the square of their length, and C code cannot be
interrupted. A page that is small enough never to take more than about a second is read in this process.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys

from .html import Html, read

_SMALL = 100_000  # characters
_SECONDS = 20  # of processor time; ordinary pages of 2 MB take about two
_MEMORY = 4 << 30  # bytes of addresses


class CostlyPageError(Exception):
    """A page that takes more time or memory than a page may."""


def read_bounded(html: str, url: str) -> Html:
    """As `html.read`. Raises CostlyPageError."""
    if len(html) <= _SMALL:
        return read(html, url)
    child = subprocess.run(  # noqa: S603 - this interpreter and this module
        [sys.executable, "-m", __name__, str(_SECONDS)],
        input=json.dumps([html, url]).encode(),
        capture_output=True,
        env={"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},  # and no key of the user's
        check=False,
    )
    if child.returncode:
        raise CostlyPageError
    title, text, links = json.loads(child.stdout)
    return Html(title, text, tuple((said, address) for said, address in links))


def _main() -> None:
    seconds = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    html, url = json.load(sys.stdin)
    json.dump(read(html, url), sys.stdout)


if __name__ == "__main__":
    _main()
