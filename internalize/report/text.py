"""How reports write numbers and untrusted text.

Everything a model wrote or an environment showed is untrusted and reaches a report only through these functions:
`plain` removes everything that a terminal would interpret, `markdown_text` and `fenced` also all Markdown and HTML.
"""

from __future__ import annotations

import re

from internalize.evaluation.stats import Interval, Share
from internalize.runs.visible import visible

NOTHING = "-"  # a value that was not measured
_BACKSLASHED = re.compile(r"[\\`*_{}\[\]|~$]")
# A reader may make links of schemes, "www." and addresses, of @names and #numbers, and icons of :names:.
_LINKING = re.compile(r"[&<>@#]|:(?=\S)|(?<=www)\.", re.IGNORECASE)


def percent(interval: Interval | None) -> str:
    """A share in percent, "41.7 [29, 56]"; narrow, so that a table fits a terminal."""
    if interval is None:
        return NOTHING
    return f"{100 * interval.mean:.1f} [{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def points(interval: Interval | None) -> str:
    """A difference of shares in points, "+18.8 [+6.2, +31.2]"."""
    if interval is None:
        return NOTHING
    # One digit for the bounds too: whether an interval touches zero must be seen.
    return f"{100 * interval.mean:+.1f} [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def change_words(interval: Interval) -> str:
    """A difference in running text: "+18.8 points (95 % interval +6.2 to +31.2)"."""
    return f"{100 * interval.mean:+.1f} points (95 % interval {100 * interval.low:+.1f} to {100 * interval.high:+.1f})"


def share(value: float | None) -> str:
    """A share as "41.7 %"."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def ratio(value: Share | None) -> str:
    """A share in percent with its bounds, "89 [62, 130]"."""
    if value is None:
        return NOTHING
    return f"{100 * value.value:.0f} [{100 * value.low:.0f}, {100 * value.high:.0f}]"


def probability(p: float) -> str:
    """A p-value as "0.021" or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def equals(p: float) -> str:
    """A p-value in running text: "= 0.021" or "< 0.001"."""
    return probability(p) if p < 0.001 else f"= {probability(p)}"


def count(value: float | None) -> str:
    """A whole number with thousands set apart by commas."""
    return NOTHING if value is None else f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds as "48 s", "4.5 min" or "2.3 h"."""
    if seconds is None:
        return NOTHING
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def memory(size: int) -> str:
    """Bytes as "812 MiB" or "3.4 GiB"."""
    if not size:
        return NOTHING
    return f"{size / 2**20:.0f} MiB" if size < 2**30 else f"{size / 2**30:.1f} GiB"


def policy_name(iteration: int) -> str:
    """What the policy after `iteration` updates is called."""
    return "starter" if iteration == 0 else f"iteration {iteration}"


def plain(text: str, limit: int = 2000) -> str:
    """`text` without control, direction and other invisible characters, cut to `limit` characters.

    Newlines stay; tabs and carriage returns become spaces, so that nothing overwrites a line.
    """
    kept = visible(text)
    return kept if len(kept) <= limit else f"{kept[:limit].rstrip()} [... {len(kept) - limit} characters cut]"


def one_line(text: str, limit: int = 300) -> str:
    """`plain` with every run of white space as one space."""
    return " ".join(plain(text, limit).split())


def markdown_text(text: str, limit: int = 300) -> str:
    """Untrusted text inside a Markdown line or table cell: shown as it is, no links, mentions or HTML."""
    linkless = _LINKING.sub(lambda match: f"\0{ord(match.group())};", one_line(text, limit))
    return _BACKSLASHED.sub(r"\\\g<0>", linkless).replace("\0", "&#")  # `plain` left no NUL of its own


def code_span(text: str, limit: int = 80) -> str:
    """A short untrusted name as Markdown code, in table cells too; marks that would end it are replaced."""
    return f"`{one_line(text, limit).replace('`', chr(39)).replace('|', '/') or NOTHING}`"


def fenced(text: str, limit: int = 2000) -> str:
    """Untrusted text as a Markdown code block, fenced by more backticks than it holds."""
    body = plain(text, limit)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{body}\n{fence}"
