"""Scripted turns of one call for the scripts that teach a policy its first habits."""

from __future__ import annotations

from collections.abc import Sequence

from internalize.inference.renderer import TemplateRenderer
from internalize.records import Message, Step, ToolCall, ToolSpec, result_of


def call_ids(renderer: TemplateRenderer, call: ToolCall, tools: Sequence[ToolSpec]) -> tuple[int, ...]:
    """The ids of a turn that is this call alone, its end of turn included."""
    return renderer.encode_turn(Message(role="assistant", tool_calls=(call,)), tools)


def past(renderer: TemplateRenderer, call: ToolCall, tools: Sequence[ToolSpec], seen: str) -> Step:
    """A past turn with its one call and what came back."""
    message = Message(role="assistant", tool_calls=(call,))
    ids = call_ids(renderer, call, tools)
    return Step(text="", message=message, token_ids=ids, results=(result_of((call,), 0, seen),))
