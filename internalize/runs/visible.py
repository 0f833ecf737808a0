"""Makes untrusted text safe for a terminal: nothing in it can move the cursor, set the clipboard or hide."""

from __future__ import annotations

import unicodedata

_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})  # control, format (direction, zero width), surrogate, private, none


def visible(text: str) -> str:
    """`text` without control and invisible characters. Newlines stay; tabs and carriage returns become spaces."""
    if text.isascii() and text.isprintable():
        return text
    spaced = (
        text.replace("\r\n", "\n").replace("\r", " ").replace("\t", " ").replace("\u2028", "\n").replace("\u2029", "\n")
    )
    return "".join(c for c in spaced if c == "\n" or unicodedata.category(c) not in _UNSEEN)
