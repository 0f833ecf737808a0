"""Between chat messages and steps: what an assistant said and called is one step, all that came back its observation.

A trajectory holds text: an action is the text of a turn, an observation one text. So a turn of several calls, or
one that a user answered besides its tools, has an observation in labelled parts, which `read_observation` takes
apart again. Left out: who asked and with what success (chat.py, official.py). What must not change: `read_turn`
gives back what `write_turn` wrote, and `read_observation` what `write_observation` wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from internalize.inference.renderer import PROTOCOLS
from internalize.records import Action

Protocol = Literal["bracket", "json"]
_BLOCK = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>\s*", re.DOTALL)
_THINKING = re.compile(r"<think>\n(.*?)\n</think>\n(.*)", re.DOTALL)
_USER = "[user]"


class Call(NamedTuple):
    """One tool call; `arguments` is JSON text as the model wrote it."""

    name: str
    arguments: str

    @property
    def action(self) -> Action | None:
        """The call as an action; None if its arguments are no JSON object."""
        found = json_object(self.arguments)
        return None if found is None else Action(name=self.name, argument=argument_text(found))


class Turn(NamedTuple):
    """What an assistant said and called at once."""

    content: str
    calls: tuple[Call, ...] = ()
    thinking: str = ""


def write_turn(turn: Turn, protocol: Protocol) -> str:
    """The turn as the text of an action: thinking, words, then the calls in the form of `protocol`."""
    calls = [_write_call(call, protocol) for call in turn.calls]
    text = "\n".join([*([turn.content] if turn.content else []), *calls])
    return f"<think>\n{turn.thinking}\n</think>\n{text}" if turn.thinking else text


def read_turn(text: str, action: Action | None = None) -> Turn:
    """The turn that an action's text holds; what cannot be read as calls stays content.

    `action` is what the environment read in it, which tells `search[x]` from words.
    """
    thinking, rest = found.groups() if (found := _THINKING.fullmatch(text)) else ("", text)
    if action is not None and rest.strip() == PROTOCOLS["bracket"].format(action):
        return Turn("", (Call(action.name, _arguments(action)),), thinking)
    head, mark, _ = rest.partition("<tool_call>")
    calls = _read_calls(rest[len(head) :]) if mark else ()
    return Turn(head.removesuffix("\n"), calls, thinking) if calls else Turn(rest, (), thinking)


def write_observation(results: Sequence[str], user: str | None) -> str:
    """One text of the results of a turn's calls, in their order, and of what a user said then (None: nothing)."""
    if len(results) + (user is not None) < 2:
        return "".join(results) if user is None else user
    parts = [f"{_label(number, len(results))}\n{text}" for number, text in enumerate(results, start=1)]
    return "\n".join([*parts, *([f"{_USER}\n{user}"] if user is not None else [])])


def read_observation(text: str, calls: int) -> tuple[list[str], str | None]:
    """Result of each call, and what a user said (None: nothing). Text without labels belongs to the first call."""
    if not calls:
        return [], text
    if not text.startswith(f"{_label(1, calls)}\n"):
        return [text, *[""] * (calls - 1)], None
    rest, results = f"\n{text}", []
    for number in range(1, calls + 1):
        before, _, rest = rest.partition(f"\n{_label(number, calls)}\n")
        results.append(before)
    rest, said, user = rest.rpartition(f"\n{_USER}\n")
    results.append(rest if said else user)
    return results[1:], user if said else None


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object that `text` is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def argument_text(arguments: dict[str, Any]) -> str:
    """A single text argument itself; several arguments, none, or another type as JSON text."""
    values = list(arguments.values())
    if len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return json.dumps(arguments, ensure_ascii=False)


def _label(number: int, of: int) -> str:
    return f"[result {number} of {of}]"


def _write_call(call: Call, protocol: Protocol) -> str:
    if protocol == "bracket" and call.action is not None:
        return PROTOCOLS["bracket"].format(call.action)
    found = json_object(call.arguments)
    arguments = call.arguments if found is None else json.dumps(found, ensure_ascii=False)
    name = json.dumps(call.name, ensure_ascii=False)
    return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'


def _read_calls(text: str) -> tuple[Call, ...]:
    """The calls of a text that holds nothing else; () for any other."""
    calls, end = [], 0
    while end < len(text):
        block = _BLOCK.match(text, end)
        call = json_object(block[1]) if block else None
        if block is None or call is None or not isinstance(call.get("name"), str):
            return ()
        arguments = call.get("arguments", {})
        if not isinstance(arguments, dict):
            return ()
        calls.append(Call(call["name"], json.dumps(arguments, ensure_ascii=False)))
        end = block.end()
    return tuple(calls)


def _arguments(action: Action) -> str:
    """Arguments of an action whose tool is not known: its own JSON object, or one argument of no special name."""
    found = json_object(action.argument)
    return json.dumps({"argument": action.argument} if found is None else found, ensure_ascii=False)
