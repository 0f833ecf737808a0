"""Parses the tool calls and the thoughts in the text of a turn, in the formats of the model families.

A format says where a call begins and ends; the form of its body is recognized by its shape. Malformed but unambiguous
calls are accepted (arguments as JSON text, a missing closing mark, line breaks inside JSON strings, missing braces);
anything else becomes a problem in words, which the policy is told.
"""

# ruff: noqa: RUF001 - marks of model families

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from internalize.records import ToolCall, ToolSpec

from . import tool_schema as schema

_MOST_BRACES = 3  # braces that may be missing at the end of a call


class CallFormat(NamedTuple):
    """Regular expressions of the marks around calls; a call without its closing mark ends with the turn."""

    opening: str
    closing: str


CALL_FORMATS: dict[str, CallFormat] = {
    "hermes": CallFormat(r"<tool_call>", r"</tool_call>"),  # Qwen, GLM, Granite 4, SmolLM3; any body
    "harmony": CallFormat(r"(?=\bto=functions\.)", r"<\|call\|>|<\|end\|>|<\|start\|>assistant"),
    "mistral": CallFormat(r"\[TOOL_CALLS\]", r"(?=\[TOOL_CALLS\])|</s>"),
    "gemma4": CallFormat(r"<\|tool_call>", r"<tool_call\|>"),
    "lfm": CallFormat(r"<\|tool_call_start\|>", r"<\|tool_call_end\|>"),
    "phi": CallFormat(r"<\|?tool_call\|>", r"<\|/tool_call\|>"),  # Granite 3 without the closing mark
    "kimi": CallFormat(r"<\|tool_call_begin\|>", r"<\|tool_call_end\|>"),
    "deepseek": CallFormat(r"<｜tool▁call▁begin｜>", r"<｜tool▁call▁end｜>"),
    "minimax": CallFormat(r"<minimax:tool_call>", r"</minimax:tool_call>"),
    "seed": CallFormat(r"<seed:tool_call>", r"</seed:tool_call>"),
    "atem": CallFormat(r"<atem:function_calls>", r"</atem:function_calls>"),
    "dsml": CallFormat(r"<｜DSML｜(?:tool|function)_calls>", r"</｜DSML｜(?:tool|function)_calls>"),
    "nemotron": CallFormat(r"<TOOLCALL>", r"</TOOLCALL>"),
    "cohere": CallFormat(r"<\|START_ACTION\|>", r"<\|END_ACTION\|>"),
    "apertus": CallFormat(r"<\|tools_prefix\|>", r"<\|tools_suffix\|>"),
    "olmo": CallFormat(r"<function_calls>", r"</function_calls>"),
    "function": CallFormat(r"(?=<function=)", r"(?<=</function>)"),
    "llama": CallFormat(r'<\|python_tag\|>|\A\s*(?=\{\s*"(?:name|type)")', r"<\|eom_id\|>"),
}
# Marks around thoughts. Templates that put the opening one into the prompt leave only the other in the turn.
THOUGHTS: tuple[tuple[str, str], ...] = (
    ("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"), ("<mm:think>", "</mm:think>"), ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"), ("<|channel|>analysis<|message|>", "<|end|>"),
    ("to=self<|message|>", "<|eom|>"),
)  # fmt: skip
_HARMONY = re.compile(r"(?P<head>[^<]*(?:<\|(?:channel|constrain)\|>[^<]*)*)<\|message\|>(?P<body>.*)", re.DOTALL)
_PARAMETER = re.compile(
    r"<(?:｜DSML｜|\w+:)?parameter(?:=| name=)\"?(?P<key>[^\">\n]+)\"?[^>\n]*>\n?(?P<value>.*?)\n?"
    r"(?:</(?:｜DSML｜|\w+:)?parameter>|(?=<(?:｜DSML｜|\w+:)?parameter)|\s*</(?:\w+:)?(?:function|invoke)|\Z)",
    re.DOTALL,
)
_FUNCTION = re.compile(r"<(?:｜DSML｜|\w+:)?(?:function=|invoke name=)\"?(?P<name>[^\">\s]+)\"?>")
_GLM = re.compile(r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)(?:</arg_value>|\Z)", re.DOTALL)
_GEMMA = re.compile(r"call:\s*(?P<name>[\w.-]+)\s*(?P<rest>\{.*)", re.DOTALL)
_NAMED = re.compile(  # a name, then JSON: behind the marks of Kimi, DeepSeek, Mistral and Hunyuan
    r"\s*(?:function<｜tool▁sep｜>)?(?:functions\.)?(?P<name>[\w.-]+?)(?::\d+)?\s*"
    r"(?:\[CALL_ID\]\w+)?(?:\[ARGS\]|<｜tool▁sep｜>|<\|tool_call_argument_begin\|>)?\s*(?:```json)?\s*(?P<rest>\{.*)?\Z",
    re.DOTALL,
)


class Written(NamedTuple):
    """A call as it was written. `as_text`: the format writes every value as text, whatever its type."""

    name: str
    values: Any
    as_text: bool = False


class Calls(NamedTuple):
    """The text before the first call, the valid calls in order, and the problem of the first invalid one."""

    content: str
    calls: tuple[ToolCall, ...] = ()
    problem: str = ""


def split_thought(text: str, pairs: Sequence[tuple[str, str]] = THOUGHTS, *, opened: bool = False) -> tuple[str, str]:
    """The thought at the start of a turn ("" = none), and the rest, which is empty if the thought was cut off.

    `opened`: the prompt ended with the opening mark. Otherwise a closing mark ends a thought only before a line break,
    which cannot occur inside a JSON string.
    """
    start = text.lstrip()
    for opening, closing in pairs:
        inside = start.removeprefix(opening)
        if inside != start or opened:
            thought, _, rest = inside.partition(closing)
            return thought.strip(), rest.lstrip()
        if start.startswith(closing):  # an empty thought, of which some templates write only the end
            return "", start.removeprefix(closing).lstrip()
        thought, closed, rest = text.partition(f"{closing}\n")
        if closed and opening not in thought and closing == "</think>":
            return thought.strip(), rest.lstrip()
    return "", text


def read_calls(text: str, form: CallFormat, tools: Sequence[ToolSpec]) -> Calls:
    """The calls in a text without thoughts."""
    content, found, problems = text, [], []
    for number, body in enumerate(_bodies(text, form)):
        if number == 0:
            content = text[: body.start]
        try:
            written = list(read_body(body.text))
        except (ValueError, RecursionError) as error:
            problems.append(f"it cannot be read ({error})")
            continue
        for call in written:
            try:
                found.append(checked(call, tools))
            except ValueError as error:
                problems.append(str(error))
    return Calls(content if found else text, tuple(found), problems[0] if problems else "")


class _Body(NamedTuple):
    start: int
    text: str


def _bodies(text: str, form: CallFormat) -> Iterator[_Body]:
    """The text between the marks of each call."""
    opening, closing = re.compile(form.opening), re.compile(f"{form.closing}|(?={form.opening})|\\Z")
    place = 0
    while place < len(text) and (found := opening.search(text, place)):
        ends = [end for end in closing.finditer(text, found.end()) if end.end() > found.end()]
        if not ends:
            return
        end = next((end for end in ends if _whole(text[found.end() : end.start()])), ends[0])
        yield _Body(found.start(), text[found.end() : end.start()])
        place = end.end()


def _whole(body: str) -> bool:
    """Whether a body may end here. It may not inside a JSON string, which may contain a closing mark."""
    if not body.lstrip().startswith(("{", "[")):
        return True
    return len(re.findall(r'(?<!\\)(?:\\\\)*"', body)) % 2 == 0


def read_body(body: str) -> Iterator[Written]:
    """The calls in one body. Raises ValueError with a short description of the problem."""
    text = body.strip()
    if functions := list(_FUNCTION.finditer(text)):
        ends = [*(found.start() for found in functions[1:]), len(text)]
        for found, end in zip(functions, ends, strict=True):
            yield _function(found["name"], text[found.end() : end])
    elif text.startswith("{") or re.match(r"\[\s*[{\]]", text):
        values = json_value(text)
        for one in values if isinstance(values, list) else [values]:
            yield _object(one)
    elif gemma := _GEMMA.match(text):
        yield Written(gemma["name"], _gemma(gemma["rest"]))
    elif "to=functions." in text:
        name = re.search(r"to=functions\.([\w.-]+)", text)
        yield Written(name[1] if name else "", json_value(text.partition("<|message|>")[2] or "{}"))
    elif "<arg_key>" in text:
        values = {found["key"].strip(): found["value"] for found in _GLM.finditer(text)}
        yield Written(text.partition("<arg_key>")[0].strip(), values, as_text=True)
    elif re.match(r"\[?\s*[\w.]+\(", text):
        yield from _python(text)
    elif named := _NAMED.fullmatch(text.removesuffix("```").rstrip()):
        yield Written(named["name"], json_value(named["rest"] or "{}"))
    else:
        raise ValueError("its form is unknown")


def _function(name: str, rest: str) -> Written:
    if rest.lstrip().startswith("{"):
        return Written(name, json_value(rest.partition("</function>")[0]))
    return Written(name, {p["key"].strip(): p["value"] for p in _PARAMETER.finditer(rest)}, as_text=True)


def _object(call: Any) -> Written:
    """A call written as a JSON object, with any of the families' field names."""
    if not isinstance(call, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - the parser raises only ValueError
    call = call["function"] if isinstance(call.get("function"), dict) else call
    name = next((call[key] for key in ("name", "tool_name", "function") if isinstance(call.get(key), str)), None)
    if name is None and len(call) == 1:  # {"look": {"box": "b"}}
        name, values = next(iter(call.items()))
        if isinstance(values, dict):
            return Written(name, values)
    if not isinstance(name, str):
        raise ValueError("it names no tool")  # noqa: TRY004
    return Written(name, next((call[key] for key in ("arguments", "parameters") if call.get(key) is not None), {}))


def _gemma(text: str) -> Any:
    """Gemma 4's objects: strings between <|"|> and bare keys."""
    strings: list[str] = []

    def kept(found: re.Match[str]) -> str:
        strings.append(found[1])
        return json.dumps(f"\x00{len(strings) - 1}")

    text = re.sub(r'<\|"\|>(.*?)<\|"\|>', kept, text, flags=re.DOTALL)
    text = re.sub(r"(?<=[{,])\s*([^\s\"{}\[\],:]+)\s*:", r'"\1":', text)

    def restored(value: Any) -> Any:
        if isinstance(value, str) and value.startswith("\x00"):
            return strings[int(value[1:])]
        if isinstance(value, dict):
            return {restored(key): restored(one) for key, one in value.items()}
        return [restored(one) for one in value] if isinstance(value, list) else value

    return restored(json_value(text))


def _python(text: str) -> Iterator[Written]:
    """Calls written as Python, one or a list; only literals are accepted."""
    try:
        try:
            tree = ast.parse(text, mode="eval").body
        except SyntaxError:  # a line break inside a string
            tree = ast.parse(text.replace("\n", "\\n"), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else [tree]
        for call in calls:
            if not isinstance(call, ast.Call) or call.args:
                raise ValueError("it needs named arguments")
            yield Written(ast.unparse(call.func), {str(one.arg): _literal(one.value) for one in call.keywords})
    except (SyntaxError, MemoryError) as error:
        raise ValueError(f"it is no Python call: {error}") from error


def _literal(node: ast.expr) -> Any:
    """The value of a Python or JSON literal."""
    names = {"true": True, "false": False, "null": None}
    return names[node.id] if isinstance(node, ast.Name) and node.id in names else ast.literal_eval(node)


def json_value(text: str) -> Any:
    """The JSON value at the start of a text; control characters in strings and missing final braces are allowed.

    Raises ValueError.
    """
    text, decoder = text.strip(), json.JSONDecoder(strict=False)
    for missing in range(_MOST_BRACES + 1):
        try:
            return decoder.raw_decode(text + "}" * missing)[0]
        except json.JSONDecodeError as error:
            reason = error
            if error.pos < len(text.rstrip()):
                break
    raise ValueError(f"not valid JSON: {reason}")


def check_all(calls: Sequence[ToolCall], tools: Sequence[ToolSpec]) -> Calls:
    """Check calls that a server has parsed: the valid ones, and the problem of the first invalid one."""
    found, problems = [], []
    for call in calls:
        try:
            found.append(checked(Written(call.name, call.arguments), tools))
        except ValueError as error:
            problems.append(str(error))
    return Calls("", tuple(found), problems[0] if problems else "")


def checked(call: Written, tools: Sequence[ToolSpec]) -> ToolCall:
    """The call if its tool is known and its arguments fit. Raises ValueError with the problem."""
    tool = next((tool for tool in tools if tool.name == call.name), None)
    if tool is None:
        names = ", ".join(tool.name for tool in tools)
        raise ValueError(f"there is no tool {call.name!r}; the tools are {names}")
    values = call.values
    if isinstance(values, str):  # JSON text in place of an object
        values = json_value(values) if values.strip() else {}
    if not isinstance(values, dict):
        raise ValueError(f"the arguments of {tool.name} are no JSON object")  # noqa: TRY004
    if call.as_text:
        values = typed(values, tool)
    if tool.parameters is None:
        if len(values) == 1 and values.keys() <= {tool.argument, "argument"}:
            values = {tool.argument: text_of(next(iter(values.values())))}
    elif problem := schema.problem(tool.parameters, values):
        raise ValueError(f"the arguments of {tool.name} do not fit: {problem}")
    return ToolCall.of(tool.name, **values)


def typed(values: Mapping[str, str], tool: ToolSpec) -> dict[str, Any]:
    """Textual values converted to the types of the tool's schema; a value that may be text stays text."""
    known = schema.properties(tool.argument_schema)
    found: dict[str, Any] = {}
    for key, text in values.items():
        argument = known.get(key)
        kinds = argument.get("type") if isinstance(argument, Mapping) else None
        kinds = kinds if isinstance(kinds, list) else [kinds]
        found[key] = text if "string" in kinds else _parsed(text)
        if kinds == [None] and not schema.problem({"properties": {key: argument or {}}}, {key: text}):
            found[key] = text
    return found


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(text.strip(), text)


def text_of(value: Any) -> str:
    """The text of a value: itself, or as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def split_harmony(text: str) -> tuple[str, str]:
    """The thought of a Harmony turn and the rest: its calls as they were written, else its last message."""
    thoughts, calls, content = [], [], []
    for part in re.split(r"<\|end\|>|<\|call\|>|<\|return\|>|<\|start\|>assistant", text):
        found = _HARMONY.match(part)
        head, body = (found["head"], found["body"]) if found else ("", part)
        if "to=functions." in head:
            calls.append(part)
        elif "analysis" in head:
            thoughts.append(body)
        elif body.strip():
            content.append(body)
    return "\n".join(thoughts).strip(), "<|call|>".join([*("".join(content) and ["\n".join(content)]), *calls])
