"""The result of a tool call as text: nothing that is text is left out, and what is not is named with its size.

What a server sends is data: it is shown, and no address in it is fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any

_MOST_BLOCKS = 1000  # of a result that are shown
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml", "application/javascript")


def shown(result: Any) -> str:
    """The content blocks of a `CallToolResult`, then its structured content if they do not say all of it."""
    parts = [_block(block) for block in result.content[:_MOST_BLOCKS]]
    if (count := len(result.content)) > _MOST_BLOCKS:
        parts.append(f"(cut: {count} blocks)")
    text = "\n".join(part for part in parts if part)
    structured = result.structured_content
    if structured is not None and not all(_says(text, leaf) for leaf in _leaves(structured)):
        text = "\n".join(filter(None, (text, json.dumps(structured, ensure_ascii=False))))
    return f"Error: {text}" if result.is_error else text


def _block(block: Any) -> str:
    if block.type == "text":
        return str(block.text)
    if block.type == "resource":
        return _resource(block.resource)
    if block.type == "resource_link":
        words = ", ".join(filter(None, (block.title or block.name, block.description, block.mime_type)))
        return f"[link {block.uri}: {words}]"
    return f"[{block.type}: {block.mime_type}, {_size(block.data)} bytes]"


def _resource(resource: Any) -> str:
    """An embedded resource under its address."""
    text = getattr(resource, "text", None)
    if text is None and (resource.mime_type or "").startswith(_TEXT_TYPES):
        text = _decoded(resource.blob)
    if text is not None:
        return f"[resource {resource.uri}]\n{text}"
    return f"[resource {resource.uri}: {resource.mime_type or 'not text'}, {_size(resource.blob)} bytes]"


def _decoded(blob: str) -> str | None:
    try:
        return base64.b64decode(blob).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None


def _size(data: str) -> int:
    """Bytes of base64."""
    return len(data) * 3 // 4 - data[-2:].count("=")


def _says(text: str, value: str) -> bool:
    """Whether a value stands in a text by itself."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _leaves(value: Any) -> Iterator[str]:
    """What the values in JSON look like in a text."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, str) else json.dumps(value)
