"""Experience into the prompt: none, global (system message) or step-wise (end of the last message).

Left out: where exactly the text lands (render.py). What must not change: an injection is part of the step it
served and of no later context. Items are untrusted text: they are shown as a list under one heading, never more.
"""

from __future__ import annotations

from collections.abc import Sequence

HEAD = "Experience:"


def render_items(texts: Sequence[str]) -> str:
    """The items as the policy sees them."""
    return "\n".join([HEAD, *(f"- {' '.join(text.split())}" for text in texts)])
