"""Tool formats: tool calls as text, written and parsed.

`bracket` writes `search[words]`, the short form that the packaged starter was trained on; `json` writes tool calls as
Hermes and Qwen models do. `parse` inverts `format`.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence
from typing import Any

from internalize.interfaces import ToolFormat
from internalize.records import Message, ToolCall, ToolSpec, json_value

from . import tool_schema as schema
from .call_formats import CALL_FORMATS, read_calls, split_thought, text_of

_WRITTEN = re.compile(r"\s*(?P<name>\w+)\[")
_LINE_END = re.compile(r"\][ \t\r]*(?=\n|\Z)")


class BracketFormat:
    """`search[words]`: one line, few tokens.

    A tool with a schema takes one JSON object, `visit[{"url": "u", "goal": "g"}]`; nothing, `look[]`, for no arguments;
    or, if it has only one argument, its bare value, `python[x = 1]`, which may span lines.
    """

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """One line, because every episode pays for its tokens; a line for each tool if one has a schema."""
        forms = [_bracket_form(tool) for tool in tools]
        if any(tool.parameters is not None for tool in tools):
            lines = [f"{form} {tool.description}".rstrip() for form, tool in zip(forms, tools, strict=True)]
            return "\n".join(["Reply with one action:", *lines])
        listed = " or ".join([", ".join(forms[:-1]), forms[-1]] if len(forms) > 1 else forms)
        return f"Reply with one action: {listed}."

    def format(self, call: ToolCall, tools: Sequence[ToolSpec] = ()) -> str:
        """One line, with spaces for line breaks; with a schema the bare value if it parses back, else the object."""
        parameters = next((tool.parameters for tool in tools if tool.name == call.name), None)
        if parameters is None:
            return f"{call.name}[{' '.join(call.argument.split())}]"
        values, bare = call.values, None
        if not values:
            bare = ""
        elif list(values) == [schema.only_argument(parameters)]:
            bare = text_of(next(iter(values.values())))
        if bare is not None and bare.count("[") == bare.count("]"):  # else following text could be parsed as its end
            text = f"{call.name}[{bare}]"
            if any(parsed.values == values for parsed in self.parse(text, tools).tool_calls):
                return text
        return f"{call.name}[{json.dumps(values, ensure_ascii=False)}]"

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Message:
        """At most one call: the first line that starts with a tool's name and `[` and has complete, valid arguments.

        The text before the call is the content.
        """
        reasoning, answer = split_thought(text)
        known = {tool.name: tool for tool in tools}
        lines = answer.split("\n")
        for number, line in enumerate(lines):
            name, bracket, rest = line.strip().partition("[")
            if not bracket or name not in known:
                continue
            tool, arguments = known[name], None
            if tool.parameters is not None:
                first = line.lstrip().partition("[")[2]
                arguments = _arguments(tool.parameters, "\n".join([first, *lines[number + 1 :]]))
            elif rest.endswith("]"):
                arguments = json.dumps({tool.argument: rest[:-1].strip()}, ensure_ascii=False)
            if arguments is not None:
                return assistant("\n".join(lines[:number]), reasoning, ToolCall(name=name, arguments=arguments))
        return assistant(answer, reasoning)

    def problem(self, text: str, tools: Sequence[ToolSpec]) -> str:
        """The problem of the first line that starts like a call, if there is no valid call."""
        _, answer = split_thought(text)
        known = {tool.name: tool for tool in tools}
        written = [found for line in answer.split("\n") if (found := _WRITTEN.match(line))]
        if not written or self.parse(text, tools).tool_calls:
            return ""
        tool = next((known[found["name"]] for found in written if found["name"] in known), None)
        if tool is None:
            return f"there is no tool {written[0]['name']!r}; the tools are {', '.join(known)}"
        return f"the arguments of {tool.name} do not fit its form {_bracket_form(tool)}, or the line goes on after them"


def _bracket_form(tool: ToolSpec) -> str:
    if tool.parameters is None:
        return f"{tool.name}[{tool.argument}]"
    only = schema.only_argument(tool.parameters)
    if only and only in schema.required(tool.parameters):
        return f"{tool.name}[{only}]"
    return f"{tool.name}[{schema.shape(tool.parameters)}]"


def _arguments(parameters: schema.Schema, rest: str) -> str | None:
    """The arguments, as canonical JSON, of a call whose text after the bracket starts with `rest`; None if invalid.

    The call ends at the end of a line: the first at which its arguments are an object that fits the schema, else the
    first at which the brackets are balanced, else the last at which the bare value fits.
    """
    ends = [rest[: found.start()] for found in _LINE_END.finditer(rest)]
    balanced = [text for text in ends if text.count("[") == text.count("]")]
    candidates = itertools.chain(
        (_json_value(text) if text.strip() else {} for text in ends),
        (values for text in [*balanced, *reversed(ends)] for values in _bare_value(parameters, text)),
    )
    for values in candidates:
        if isinstance(values, dict) and not schema.problem(parameters, values):
            return json.dumps(values, ensure_ascii=False)
    return None


def _bare_value(parameters: schema.Schema, text: str) -> list[dict[str, Any]]:
    """What `text` may stand for as the only argument: a string, else a JSON value or, where none fits, a string."""
    only = schema.only_argument(parameters)
    if only is None or not (text.strip() or schema.takes_text(parameters)):
        return []
    if schema.takes_text(parameters):
        return [{only: text.strip("\n")}]
    return [{only: _json_value(text.strip())}, {only: text.strip()}]


class JsonFormat:
    """`<tool_call>` around one JSON object with `name` and `arguments`, as Hermes and Qwen models write it."""

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tools as JSON lines, and the form of a call."""
        lines = [
            json.dumps(
                {
                    "name": tool.name,
                    "description": tool.description,
                    "arguments": {tool.argument: "text"} if tool.parameters is None else schema.shapes(tool.parameters),
                }
            )
            for tool in tools
        ]
        call = '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
        return "\n".join(["Tools:", *lines, "Reply with exactly one call in this form:", call])

    def format(self, call: ToolCall, tools: Sequence[ToolSpec] = ()) -> str:  # noqa: ARG002 - the call is complete
        """The call as one JSON object between its tags; arguments that are no JSON object stay as they are."""
        empty = call.arguments.strip() in {"", "{}"}
        arguments = json.dumps(call.values, ensure_ascii=False) if call.values or empty else call.arguments
        name = json.dumps(call.name, ensure_ascii=False)
        return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Message:
        """Calls of known tools with valid arguments, in order; the text before the first is the content."""
        reasoning, answer = split_thought(text)
        read = read_calls(answer, CALL_FORMATS["hermes"], tools)
        return assistant(read.content, reasoning, *read.calls)

    def problem(self, text: str, tools: Sequence[ToolSpec]) -> str:
        """The problem of the first invalid call."""
        return read_calls(split_thought(text)[1], CALL_FORMATS["hermes"], tools).problem


def assistant(content: str, reasoning: str = "", *calls: ToolCall) -> Message:
    """An assistant's turn; white space around its content belongs to the text format and is dropped."""
    return Message(role="assistant", content=content.strip(), reasoning=reasoning, tool_calls=calls)


def _json_value(text: str) -> Any:
    """The JSON value that `text` is, or `text` itself."""
    try:
        return json_value(text)
    except ValueError:
        return text


def as_text(message: Message, tool_format: ToolFormat, tools: Sequence[ToolSpec] = ()) -> str:
    """An assistant's turn as text, for models whose calls and results are text."""
    thoughts = [f"<think>\n{message.reasoning}\n</think>"] if message.reasoning else []
    content = [message.text] if message.text else []
    return "\n".join([*thoughts, *content, *(tool_format.format(call, tools) for call in message.tool_calls)])


def as_user(results: Sequence[Message]) -> Message:
    """The results of a turn as one user message, for models whose prompt describes the tools."""
    return Message(role="user", content="\n".join(result.text for result in results))


TOOL_FORMATS: dict[str, ToolFormat] = {"bracket": BracketFormat(), "json": JsonFormat()}


def text_name(protocol: str) -> str:
    """The name of the format of calls for a prompt that describes the tools."""
    return protocol if protocol in TOOL_FORMATS else "bracket"


def text_format(protocol: str) -> ToolFormat:
    """The format of calls for a prompt that describes the tools, whatever the model's own format is."""
    return TOOL_FORMATS[text_name(protocol)]
