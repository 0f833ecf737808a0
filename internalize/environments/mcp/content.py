"""The result of a tool call as text: all of its text, and the type and size of everything else.

A server's result is data: it is shown, and no address in it is fetched.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

_MOST_BLOCKS = 1000  # blocks of a result that are shown
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/yaml", "application/javascript")


@asynccontextmanager
async def bounded(transport: AbstractAsyncContextManager[tuple[Any, Any]]) -> AsyncIterator[tuple[Any, Any]]:
    """A transport that limits the blocks of a result, because each becomes an object of kilobytes."""
    async with transport as (incoming, outgoing):
        yield _FewBlocks(incoming), outgoing


class _FewBlocks:
    """The stream of a server's messages, with the first blocks of each result and the number of all blocks."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    async def receive(self) -> Any:
        """The next message."""
        found = await self._stream.receive()
        result = getattr(getattr(found, "message", None), "result", None)
        blocks = result.get("content") if isinstance(result, dict) else None
        if isinstance(blocks, list) and len(blocks) > _MOST_BLOCKS:
            count = len(blocks)
            blocks[_MOST_BLOCKS:] = [{"type": "text", "text": f"(cut: {count} blocks)"}]
        return found

    def __aiter__(self) -> _FewBlocks:
        return self

    async def __anext__(self) -> Any:
        from anyio import EndOfStream  # noqa: PLC0415 - of the extra

        try:
            return await self.receive()
        except EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> _FewBlocks:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stream.aclose()


def shown(result: Any) -> str:
    """The content blocks of a `CallToolResult`, then its structured content unless the blocks have all of it."""
    text = "\n".join(part for block in result.content if (part := _block(block)))
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
    """Whether a text contains a value as a separate word."""
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text) is not None


def _leaves(value: Any) -> Iterator[str]:
    """The values in JSON as they would appear in a text."""
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value if isinstance(value, str) else json.dumps(value)
