"""Anthropic Messages as chat messages: the blocks of content become text, thoughts, calls and results.

The provider's request types cannot read logs: they are unions of typed dictionaries without a discriminator. They
accept an unknown block until its list is walked, and then report 80 errors without the right one (98 for a number as a
name in Responses). Here an unknown block is refused by its type.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .repairs import Raw, kind_of, listed

_RESULT = "_tool_result"  # how the types of results of the provider's own tools end
_BLOCKS = frozenset({"tool_use", "tool_result", "server_tool_use", "mcp_tool_use"})


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are conversations in the format of Anthropic Messages."""
    return isinstance(head[0].get("messages"), list) and in_blocks(head)


def in_blocks(lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether any message has blocks that only this format knows, or any tool its name for a schema."""
    for line in lines:
        tools, messages = listed(line.get("tools")), listed(line.get("messages"))
        if isinstance(tools, list) and any("input_schema" in tool for tool in tools if isinstance(tool, Mapping)):
            return True
        for message in messages if isinstance(messages, list) else ():
            content = message.get("content") if isinstance(message, Mapping) else None
            if isinstance(content, list) and any(kind_of(block) in _BLOCKS for block in content):
                return True
    return False


def as_chat(value: Mapping[str, Any]) -> Mapping[str, Any]:
    """A line with its messages in the chat format."""
    messages = listed(value.get("messages"))
    if not isinstance(messages, list):
        return value
    return {**value, "messages": [part for message in messages for part in chat_messages(message)]}


def chat_messages(message: Any) -> list[Any]:
    """The chat messages that one message with blocks stands for, in order."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if not isinstance(content, list):
        return [message]
    blocks = [block for block in content if block is not None]
    if message.get("role") == "assistant":
        return _turns(message, blocks)
    results = [_result(block) for block in blocks if kind_of(block).endswith("tool_result")]
    rest = [block for block in blocks if not kind_of(block).endswith("tool_result")]
    return [*results, *([{**message, "content": rest}] if rest or not results else [])]


def _turns(message: Mapping[str, Any], blocks: Sequence[Any]) -> list[Raw]:
    """An assistant's turn; it is in parts if a tool of the provider answered inside it."""
    found: list[Raw] = []
    turn: Raw = {**message, "content": [], "tool_calls": []}
    for block in blocks:
        kind = kind_of(block)
        if kind in {"tool_use", "server_tool_use", "mcp_tool_use"}:
            call = {"id": block.get("id"), "function": {"name": block.get("name"), "arguments": block.get("input")}}
            turn["tool_calls"].append(call)
        elif kind.endswith(_RESULT):
            found += [turn, _result(block)]
            turn = {**message, "content": [], "tool_calls": []}
        else:
            turn["content"].append(block)
    return [*found, turn] if turn["content"] or turn["tool_calls"] or not found else found


def _result(block: Mapping[str, Any]) -> Raw:
    content = block.get("content")
    return {"role": "tool", "tool_call_id": block.get("tool_use_id"), "content": "" if content is None else content}
