"""Short ways to write calls, steps and turns of trajectories in tests."""

from __future__ import annotations

from typing import Any, Literal

from internalize.records import Message, Step, ToolCall, result_of

act = ToolCall.from_text


def step(text: str, call: ToolCall | None = None, seen: str | None = None, **rest: Any) -> Step:
    """A step with at most one call; `seen` None = the episode ended there."""
    calls = (call.model_copy(update={"id": "call_0"}),) if call else ()
    message = Message(role="assistant", content="" if calls else text, tool_calls=calls)
    results = () if seen is None else (result_of(calls, 0, seen),)
    return Step(text=text, message=message, results=results, **rest)


def turn(token_ids: tuple[int, ...], finish: Literal["stop", "length"], seen: str) -> Step:
    """A past turn as a renderer sees it."""
    return step("", seen=seen, token_ids=token_ids, finish=finish)


def keys(*calls: ToolCall | None) -> list[tuple[str, str] | None]:
    """Names and arguments, to compare calls whatever their ids and argument names are."""
    return [call and call.key for call in calls]
