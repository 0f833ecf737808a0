"""Tool formats: how a policy writes tool calls as text, and how they are read.

`bracket` writes `search[words]`, in the few tokens that the packaged starter was trained on; `json` writes tool calls
as Hermes and Qwen models do. `parse` of `format` gives the call back.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from internalize.interfaces import ToolFormat
from internalize.records import Message, ToolCall, ToolSpec

from . import tool_schema as schema
from .structured import split_reasoning

_THINK, _THOUGHT = "<think>", "</think>"
_LINE_END = re.compile(r"\][ \t\r]*(?=\n|\Z)")
_CALL, _CALL_END = re.compile(r"<tool_call>\s*(?=\{)"), re.compile(r"\s*</tool_call>")


class BracketFormat:
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

    def format(self, call: ToolCall, tools: Sequence[ToolSpec] = ()) -> str:
        """One line, line breaks in the argument become spaces; with a schema the value as it is, or the object."""
        own = _schema_of(call.name, tools)
        if own is None:
            return f"{call.name}[{' '.join(call.argument.split())}]"
        values = call.values
        bare = _bare(own, values)
        if bare is not None and bare.count("[") == bare.count("]"):  # then nothing that follows can be taken for it
            text = f"{call.name}[{bare}]"
            if any(read.values == values for read in self.parse(text, tools).tool_calls):
                return text
        return f"{call.name}[{json.dumps(values, ensure_ascii=False)}]"

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Message:
        """At most one call: the first line that starts with a tool's name and `[` and whose argument is whole and fits.

        What stands before the call is the content.
        """
        reasoning, answer = split_reasoning(text)
        known = {tool.name: tool for tool in tools}
        lines = answer.split("\n")
        for number, line in enumerate(lines):
            name, bracket, rest = line.strip().partition("[")
            if not bracket or name not in known:
                continue
            arguments = _bracket_arguments(known[name], [line.lstrip().partition("[")[2], *lines[number + 1 :]], rest)
            if arguments is not None:
                return assistant("\n".join(lines[:number]), reasoning, ToolCall(name=name, arguments=arguments))
        return assistant(answer, reasoning)


def _bracket_arguments(tool: ToolSpec, lines: Sequence[str], line: str) -> str | None:
    """The arguments of a call as JSON text; `lines` follow its bracket, the first of them stripped is `line`."""
    if tool.parameters is not None:
        return _called(tool.parameters, "\n".join(lines))
    return json.dumps({tool.argument: line[:-1].strip()}, ensure_ascii=False) if line.endswith("]") else None


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


class JsonFormat:
    """`<tool_call>` around one JSON object with `name` and `arguments`, as Hermes and Qwen models write it."""

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """The tools as JSON lines and the form of a call."""
        lines = [
            json.dumps({"name": tool.name, "description": tool.description, "arguments": _json_form(tool)})
            for tool in tools
        ]
        call = '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>'
        return "\n".join(["Tools:", *lines, "Reply with exactly one call in this form:", call])

    def format(self, call: ToolCall, tools: Sequence[ToolSpec] = ()) -> str:  # noqa: ARG002 - the call says it all
        """The call as one JSON object between its marks."""
        empty = call.arguments.strip() in {"", "{}"}
        arguments = json.dumps(call.values, ensure_ascii=False) if call.values or empty else call.arguments
        name = json.dumps(call.name, ensure_ascii=False)
        return f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'

    def parse(self, text: str, tools: Sequence[ToolSpec]) -> Message:
        """Calls of known tools whose arguments fit, in order; what stands before the first is the content."""
        reasoning, answer = split_reasoning(text)
        known = {tool.name: tool for tool in tools}
        found = []
        for call in _calls(answer):
            name, arguments = call.get("name"), call.get("arguments")
            if not isinstance(name, str) or name not in known or not isinstance(arguments, dict):
                continue
            tool = known[name]
            values = _named(arguments, tool.argument) if tool.parameters is None else arguments
            if tool.parameters is None or not schema.problem(tool.parameters, values):
                found.append(ToolCall.of(name, **values))
        content = answer.partition("<tool_call>")[0] if found else answer
        return assistant(content, reasoning, *found)


def assistant(content: str, reasoning: str = "", *calls: ToolCall) -> Message:
    """An assistant's turn; white space around its content belongs to the text format and is dropped."""
    return Message(role="assistant", content=content.strip(), reasoning=reasoning, tool_calls=calls)


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


def _named(arguments: dict[str, Any], own: str) -> dict[str, Any]:
    """The tool's only argument as text; other arguments are left as they are, for the environment to answer."""
    if len(arguments) != 1 or not arguments.keys() <= {own, "argument"}:
        return arguments
    value = next(iter(arguments.values()))
    return {own: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def as_text(message: Message, tool_format: ToolFormat) -> str:
    """An assistant's turn as text, for models that are shown calls and results as text."""
    thoughts = [f"{_THINK}\n{message.reasoning}\n{_THOUGHT}"] if message.reasoning else []
    content = [message.text] if message.text else []
    return "\n".join([*thoughts, *content, *(tool_format.format(call) for call in message.tool_calls)])


def as_user(results: Sequence[Message]) -> Message:
    """The results of a turn as one user message: what models expect that were told of their tools in the prompt."""
    return Message(role="user", content="\n".join(result.text for result in results))


TOOL_FORMATS: dict[str, ToolFormat] = {"bracket": BracketFormat(), "json": JsonFormat()}
