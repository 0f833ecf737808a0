"""Tool protocols: how a policy writes an action and how it is read. `bracket`: `search[words]`; `json`: tool calls.

Left out: chat templates and token ids (render.py); what a schema means (schema.py). What must not change: `parse` of
`format` gives the action back; tools without a schema read exactly as the packaged starter was trained to write them.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from internalize.records import Action, ToolSpec

from . import tool_schema as schema

_UNNAMED = "argument"  # JSON key of the argument when the tool is not known
_LINE_END = re.compile(r"\][ \t\r]*(?=\n|\Z)")
_CALL, _CALL_END = re.compile(r"<tool_call>\s*(?=\{)"), re.compile(r"\s*</tool_call>")


class ToolProtocol(Protocol):
    """How actions are written and read."""

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the system message says about the tools."""
        ...

    def format(self, action: Action, tools: Sequence[ToolSpec] = ()) -> str:
        """The text of an action; `parse` of it gives the action back."""
        ...

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Action | None:
        """The first valid action in `text`, or None."""
        ...


class BracketProtocol:
    """`search[words]`: one line, few tokens.

    A tool with a schema takes one JSON object, `visit[{"url": "u", "goal": "g"}]`; nothing, `look[]`, when there is
    nothing to say; or the bare value, `python[x = 1]`, over several lines if need be, when it has one argument.
    """

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """One line, because every token of it is paid for in every episode; a line a tool if one has a schema."""
        if any(tool.parameters is not None for tool in tools):
            lines = [f"{_bracket_form(tool)} {tool.description}".rstrip() for tool in tools]
            return "\n".join(["Reply with one action:", *lines])
        forms = [_bracket_form(tool) for tool in tools]
        listed = " or ".join([", ".join(forms[:-1]), forms[-1]] if len(forms) > 1 else forms)
        return f"Reply with one action: {listed}."

    def format(self, action: Action, tools: Sequence[ToolSpec] = ()) -> str:
        """One line, line breaks in the argument become spaces; with a schema the value as it is, or the object."""
        own = _schema_of(action.name, tools)
        if own is None:
            return f"{action.name}[{' '.join(action.argument.split())}]"
        held = _json_object(action.argument) or {}
        bare = _bare(own, held)
        if bare is not None and bare.count("[") == bare.count("]"):  # then nothing that follows can be taken for it
            text = f"{action.name}[{bare}]"
            read = self.parse(text, tools)
            if read and json.loads(read.argument) == held:
                return text
        return f"{action.name}[{json.dumps(held, ensure_ascii=False)}]"

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Action | None:
        """The first line that starts with `name[`, `name` that of a tool, and whose argument is whole and fits."""
        known = {tool.name: tool for tool in tools}
        lines = text.split("\n")
        for number, line in enumerate(lines):
            name, bracket, rest = line.strip().partition("[")
            if not bracket or name not in known:
                continue
            own = known[name].parameters
            if own is not None:
                rest = "\n".join([line.lstrip().partition("[")[2], *lines[number + 1 :]])
                found = _called(own, rest)
                if found is not None:
                    return Action(name=name, argument=found)
            elif rest.endswith("]"):
                return Action(name=name, argument=rest[:-1].strip())
        return None


def _bracket_form(tool: ToolSpec) -> str:
    own = tool.parameters
    if own is None:
        return f"{tool.name}[{tool.argument}]"
    only = schema.only_argument(own)
    if only and only in schema.required(own):
        return f"{tool.name}[{only}]"
    return f"{tool.name}[{schema.shape(own)}]"


def _schema_of(name: str, tools: Sequence[ToolSpec]) -> schema.Schema | None:
    return next((tool.parameters for tool in tools if tool.name == name), None)


def _bare(own: schema.Schema, held: dict[str, Any]) -> str | None:
    """How a call is written without its object, or None."""
    only = schema.only_argument(own)
    if not held:
        return ""
    if only is None or held.keys() != {only}:
        return None
    value = held[only]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _called(own: schema.Schema, rest: str) -> str | None:
    """The arguments, as canonical JSON, of a call whose text after the bracket starts with `rest`; None if it is none.

    The call ends at a line's end: the first at which its arguments are an object that fits, else the first at which
    the brackets are balanced, else the last that makes sense.
    """
    ends = [rest[: found.start()] for found in _LINE_END.finditer(rest)]
    balanced = [held for held in ends if held.count("[") == held.count("]")]
    tries = itertools.chain(
        (_fitting(own, _json_object(held) if held.strip() else {}) for held in ends),
        (_fitting(own, alone) for held in [*balanced, *reversed(ends)] for alone in _alone(own, held)),
    )
    return next((found for found in tries if found is not None), None)


def _fitting(own: schema.Schema, arguments: dict[str, Any] | None) -> str | None:
    if arguments is None or schema.problem(own, arguments):
        return None
    return json.dumps(arguments, ensure_ascii=False)


def _alone(own: schema.Schema, held: str) -> list[dict[str, Any]]:
    """The arguments if `held` is the value of the only one: a text, else a JSON value or, where none fits, a text."""
    only = schema.only_argument(own)
    if only is None or not (held.strip() or schema.takes_text(own)):
        return []
    if schema.takes_text(own):
        return [{only: held.strip("\n")}]
    return [{only: _json_value(held.strip())}, {only: held.strip()}]


class JsonProtocol:
    """`<tool_call>` around one JSON object with `name` and `arguments`, as Hermes and Qwen models write it."""

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tools as JSON lines and the form of a call."""
        lines = [
            json.dumps({"name": tool.name, "description": tool.description, "arguments": _json_form(tool)})
            for tool in tools
        ]
        call = '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
        return "\n".join(["Tools:", *lines, "Reply with exactly one call in this form:", call])

    def format(self, action: Action, tools: Sequence[ToolSpec] = ()) -> str:
        """One call; an argument that is itself a JSON object stands for several arguments."""
        key = next((tool.argument for tool in tools if tool.name == action.name), _UNNAMED)
        several = _json_object(action.argument)
        if several is None and _schema_of(action.name, tools) is not None:
            several = {}
        call = {"name": action.name, "arguments": {key: action.argument} if several is None else several}
        return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Action | None:
        """The first call of a known tool; one argument of the tool's own name is taken out of the object.

        With a schema the arguments stay an object, and one that does not fit is no action.
        """
        known = {tool.name: tool for tool in tools}
        for call in _calls(text):
            name, arguments = call.get("name"), call.get("arguments")
            if not isinstance(name, str) or name not in known or not isinstance(arguments, dict):
                continue
            own = known[name].parameters
            if own is None:
                return Action(name=name, argument=_argument_text(arguments, known[name].argument))
            if (found := _fitting(own, arguments)) is not None:
                return Action(name=name, argument=found)
        return None


def _calls(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects between the marks of a call."""
    for match in _CALL.finditer(text):
        try:
            call, end = json.JSONDecoder().raw_decode(text, match.end())
        except (ValueError, RecursionError):
            continue
        if _CALL_END.match(text, end):
            yield call


def _json_form(tool: ToolSpec) -> dict[str, str]:
    return {tool.argument: "text"} if tool.parameters is None else schema.shapes(tool.parameters)


def _json_value(text: str) -> Any:
    """The JSON value that `text` is, or `text` itself."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _argument_text(arguments: dict[str, Any], own: str) -> str:
    if len(arguments) == 1:
        key, value = next(iter(arguments.items()))
        if key in (own, _UNNAMED) and not isinstance(value, dict):
            return value if isinstance(value, str) else json.dumps(value)
    return json.dumps(arguments, ensure_ascii=False)


PROTOCOLS: dict[str, ToolProtocol] = {"bracket": BracketProtocol(), "json": JsonProtocol()}
