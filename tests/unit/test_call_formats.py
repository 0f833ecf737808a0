"""Calls and thoughts in the text of turns: the formats of the families, what is malformed, what is not a call."""

# ruff: noqa: RUF001 - marks of model families

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import templates
from internalize.inference.call_formats import CALL_FORMATS, read_calls, split_harmony, split_thought
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import ToolSpec

TEXT, WHOLE = {"type": "string"}, {"type": "integer"}


def tool(name: str, **arguments: dict[str, str]) -> ToolSpec:
    schema = {"type": "object", "properties": arguments, "required": list(arguments)}
    return ToolSpec(name=name, argument="", description="", parameters=schema)


TOOLS = (tool("look", box=TEXT, depth=WHOLE), tool("list_boxes"), tool("python", code=TEXT))
LOOK = ("look", {"box": "b.1", "depth": 2})
JSON = '{"box": "b.1", "depth": 2}'
WRITTEN = {
    "hermes": f'<tool_call>\n{{"name": "look", "arguments": {JSON}}}\n</tool_call>',
    "hermes, xml": "<tool_call>\n<function=look>\n<parameter=box>\nb.1\n</parameter>\n<parameter=depth>\n2\n"
    "</parameter>\n</function>\n</tool_call>",
    "hermes, glm": "<tool_call>look\n<arg_key>box</arg_key>\n<arg_value>b.1</arg_value>\n<arg_key>depth</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>",
    "mistral": f'[TOOL_CALLS][{{"name": "look", "arguments": {JSON}, "id": "123456789"}}]</s>',
    "mistral, new": f"[TOOL_CALLS]look[CALL_ID]123456789[ARGS]{JSON}",
    "gemma4": '<|tool_call>call:look{box:<|"|>b.1<|"|>,depth:2}<tool_call|>',
    "lfm": '<|tool_call_start|>[look(box="b.1", depth=2)]<|tool_call_end|>',
    "phi": f'<|tool_call|>[{{"name": "look", "arguments": {JSON}}}]<|/tool_call|>',
    "kimi": f"<|tool_call_begin|>functions.look:0<|tool_call_argument_begin|>{JSON}<|tool_call_end|>",
    "deepseek": f"<｜tool▁call▁begin｜>function<｜tool▁sep｜>look\n```json\n{JSON}\n```<｜tool▁call▁end｜>",
    "deepseek, new": f"<｜tool▁call▁begin｜>look<｜tool▁sep｜>{JSON}<｜tool▁call▁end｜>",
    "minimax": '<minimax:tool_call>\n<invoke name="look">\n<parameter name="box">b.1</parameter>\n'
    '<parameter name="depth">2</parameter>\n</invoke>\n</minimax:tool_call>',
    "nemotron": f'<TOOLCALL>[{{"name": "look", "arguments": {JSON}}}]</TOOLCALL>',
    "cohere": f'<|START_ACTION|>[{{"tool_call_id": "0", "tool_name": "look", "parameters": {JSON}}}]<|END_ACTION|>',
    "apertus": f'<|tools_prefix|>[{{"look": {JSON}}}]<|tools_suffix|>',
    "olmo": '<function_calls>look(box="b.1", depth=2)</function_calls>',
    "function": f"<function=look>{JSON}</function>",
    "llama": f'{{"name": "look", "parameters": {JSON}}}',
    "harmony": f" to=functions.look<|channel|>commentary json<|message|>{JSON}",
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_call_of_every_format_is_read(name: str) -> None:
    found = read_calls(WRITTEN[name], CALL_FORMATS[name.partition(",")[0]], TOOLS)
    assert ([(call.name, call.values) for call in found.calls], found.problem) == ([LOOK], "")


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        (f'<tool_call>{{"name": "look", "arguments": {JSON}}}', [LOOK]),  # no closing mark
        (f'<tool_call>{{"name": "look", "arguments": {JSON}</tool_call>', [LOOK]),  # no closing brace
        ('<tool_call>{"name": "look", "arguments": "{\\"box\\": \\"b.1\\", \\"depth\\": 2}"}</tool_call>', [LOOK]),
        ('<tool_call>{"name": "list_boxes"}</tool_call>', [("list_boxes", {})]),
        (
            '<tool_call>{"name": "python", "arguments": {"code": "x = 1\nprint(x)"}}</tool_call>',
            [("python", {"code": "x = 1\nprint(x)"})],
        ),
        (
            '<tool_call>{"name": "python", "arguments": {"code": "</tool_call>"}}</tool_call>',
            [("python", {"code": "</tool_call>"})],
        ),
        (2 * f'<tool_call>{{"name": "look", "arguments": {JSON}}}', [LOOK, LOOK]),
        ("<tool_call>\n<function=list_boxes>\n</function>\n</tool_call>", [("list_boxes", {})]),
        ("<think>\n<tool_call>{}</tool_call>\n</think>\nNo.", []),
        ("I will not <tool_call> anything", []),
    ],
)
def test_what_is_malformed_but_clear_is_read(text: str, calls: list[tuple[str, object]]) -> None:
    assert [(call.name, call.values) for call in TOOL_FORMATS["json"].parse(text, TOOLS).tool_calls] == calls


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('<tool_call>{"name": "lok", "arguments": {}}</tool_call>', "there is no tool 'lok'; the tools are look, list"),
        ('<tool_call>{"name": "look", "arguments": [1]}</tool_call>', "the arguments of look are no JSON object"),
        ('<tool_call>{"name": "look", "arguments": {"box": "b"}}</tool_call>', "'depth' is a required property"),
        ('<tool_call>{"arguments": {"box": "b"}}</tool_call>', "there is no tool 'arguments'"),
        ("<tool_call>{'name': 'look'}</tool_call>", "not valid JSON"),
        ("Nothing to call.", ""),
    ],
)
def test_what_is_wrong_is_said(text: str, problem: str) -> None:
    assert not TOOL_FORMATS["json"].parse(text, TOOLS).tool_calls
    said = TOOL_FORMATS["json"].problem(text, TOOLS)
    assert problem in said
    assert bool(said) == bool(problem)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("look[1]", "the arguments of look do not fit its form"),
        ("peek[1]", "there is no tool 'peek'"),
        ("list_boxes[]", ""),
        ("see a[1]", ""),
    ],
)
def test_what_is_wrong_with_a_bracket_is_said(text: str, problem: str) -> None:
    assert problem in TOOL_FORMATS["bracket"].problem(text, TOOLS)
    assert bool(TOOL_FORMATS["bracket"].problem(text, TOOLS)) == bool(problem)


@pytest.mark.parametrize(
    ("text", "opened", "parts"),
    [
        ("<think>\na\n</think>\n\nb", False, ("a", "b")),
        ("a\n</think>\n\nb", True, ("a", "b")),
        ("<think>\ncut off", False, ("cut off", "")),
        ("[THINK]a[/THINK]b", False, ("a", "b")),
        ("</mm:think>b", False, ("", "b")),
        ("<|channel>thought\na<channel|>b", False, ("a", "b")),
        ("no thought", False, ("", "no thought")),
    ],
)
def test_a_thought_is_apart(text: str, opened: bool, parts: tuple[str, str]) -> None:  # noqa: FBT001
    pairs = [("<think>", "</think>")] if opened else None
    assert (split_thought(text, pairs, opened=True) if pairs else split_thought(text)) == parts


def test_the_messages_of_a_harmony_turn() -> None:
    turn = f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{WRITTEN['harmony']}"
    thought, rest = split_harmony(turn)
    assert thought == "Hm."
    assert [call.values for call in read_calls(rest, CALL_FORMATS["harmony"], TOOLS).calls] == [LOOK[1]]
    assert split_harmony("<|channel|>final<|message|>Four.") == ("", "Four.")


TRL = next(
    (Path(place) for spec in [find_spec("trl")] if spec for place in spec.submodule_search_locations or ()), None
)


@pytest.mark.skipif(TRL is None, reason="the package trl, which carries templates, is not installed")
@pytest.mark.parametrize(
    "name",
    [
        "qwen3",
        "qwen3_5_think",
        "glm4moe",
        "gptoss",
        "gemma4",
        "gemma4_v5",
        "llama3_1",
        "lfm2_v2",
        "deepseek_r1_distill",
    ],
)
def test_real_templates(name: str) -> None:
    """A replayed conversation with tools through templates of other people (`python -m benchmarks.templates`: all)."""
    assert TRL
    source = (TRL / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    row = templates.row(name, templates.tokenizer_for(source, name, None))
    assert row.history
    assert not row.problems
