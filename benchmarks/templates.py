"""Chat templates with tools: a replayed conversation through each, as a table.

    python -m benchmarks.templates --templates FOLDER... [--tokenizers FOLDER] [--out docs/templates.md]

`--templates`: folders of .jinja files (those of the package trl, say). `--tokenizers`: a folder with one folder a
tokenizer, of which each template gets the one its name fits; missing control tokens of a template are added to it.
Without tokenizers every template gets a small one that is built from code.
"""

# ruff: noqa: RUF001 - marks of model families

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from internalize.errors import UserError
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.rendering import renderer_of
from internalize.inference.replay import encoded
from internalize.records import Message, Step, ToolCall, ToolSpec, Trajectory, result_of
from internalize.training.examples import build_example
from tests.tiny import tiny_tokenizer

CONTROL = re.compile(  # what templates write as control tokens
    r"<[|｜][^<>|｜\n]{0,40}[|｜]?>|<[^<>|｜\s]{1,40}[|｜]>|</?(?:start|end)_of_\w+>|</?s>|\[/?(?:INST|TOOL_\w+)\]"
    r"|</?(?:think|tool_call|tool_response|tools|minimax:tool_call)>|<(?:begin|end)_of_sentence>"
    r"|</?seed:\w+>|<SPECIAL_\d+>|<sep>|</(?:assistant|user|system)>"
    r"|\]~!?b[\[\]]|\[e~\[|\[/?(?:AVAILABLE_TOOLS|SYSTEM_PROMPT|MODEL_SETTINGS|THINK|ARGS|CALL_ID)\]"
)
STRING = {"type": "string"}
TOOLS = (
    ToolSpec(name="look", argument="box", description="Looks into a box."),
    ToolSpec(
        name="add",
        argument="",
        description="Adds two numbers.",
        parameters={
            "type": "object",
            "properties": {"x": {"type": "integer"}, "y": {"type": "number"}, "note": STRING},
            "required": ["x", "y"],
        },
    ),
)
PROMPT = (Message(role="system", content="Be brief."), Message(role="user", content="What is in box b.1?"))
CALLS = (
    (ToolCall.of("look", box="b.1"),),
    (ToolCall.of("add", x=3, y=2.5, note="two\nlines"),),
    (ToolCall.of("add", x=0, y=-1, note='a "quoted" word'),),
    (ToolCall.of("look", box="7"), ToolCall.of("look", box="ä {b}")),
)
FAMILIES = (  # control tokens of all families
    "<|im_end|>", "<|im_start|>system", "<|eot_id|>", "<|start_header_id|>", "<end_of_turn>", "<start_of_turn>user",
    "</s>", "<s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<|return|>", "<|call|>", "<|channel|>final<|message|>",
    "<turn|>", "<|tool_call>", "<tool_call|>", "<｜User｜>", "<｜end▁of▁sentence｜>", "<|user|>", "<|observation|>",
    "<|endoftext|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "<tool_response>", "<|END_OF_TURN_TOKEN|>",
    "<eos>", "<bos>",
    "<|tool_call_start|>", "<|end|>", "]~b]", "[e~[", "<unused0>", "<pad>", "<|python_tag|>", "<|eom_id|>",
)  # fmt: skip
BASES = {  # the tokenizer of a template by what its name holds
    "gemma": "gemma3", "llama3": "llama3_1", "llama-3": "llama3_1", "gptoss": "gptoss", "gpt-oss": "gptoss",
    "deepseek": "deepseek_v3", "": "qwen3",
}  # fmt: skip
ENDS = (  # what ends a turn in these templates, as a tokenizer of the family has it
    "<|im_end|>", "<turn|>", "<end_of_turn>", "<|eot_id|>", "<|return|>", "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>", "<end_of_utterance>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "[e~[",
    "<end_of_sentence>", "<seed:eos>", "<SPECIAL_12>", "<sep>", "</assistant>", "</s>",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What one template does. A problem is a sentence; the checks are of conversations of calls and results."""

    name: str
    way: str = ""
    history: str = ""
    several: str = ""
    problems: tuple[str, ...] = ()


def tokenizer_for(source: str, name: str, folder: Path | None) -> Any:
    """A tokenizer with a template, and with the control tokens that it writes."""
    if folder is None:
        tokenizer = tiny_tokenizer(source)
    else:
        base = next(base for part, base in BASES.items() if part in name.lower())
        tokenizer = loaded(folder / base)
        tokenizer.chat_template = source
    if "bos_token" in source and tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.eos_token = next((end for end in ENDS if end in source), tokenizer.eos_token)
    shown = "".join((source, *written(tokenizer)))
    known = {token.content for token in tokenizer.added_tokens_decoder.values()}
    tokenizer.add_tokens(sorted({found[0] for found in CONTROL.finditer(shown)} - known), special_tokens=True)
    return tokenizer


def written(tokenizer: Any) -> Iterator[str]:
    """Conversations as the template writes them: some put their control tokens together as they are rendered."""
    call = {"type": "function", "id": "call_0", "function": {"name": "look", "arguments": {"box": "b"}}}
    chat = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "", "reasoning_content": "c", "tool_calls": [call]},
        {"role": "tool", "content": "d", "tool_call_id": "call_0", "name": "look"},
    ]
    for length in (1, 2, 3):
        with contextlib.suppress(Exception):  # what it cannot write is found out later
            yield tokenizer.apply_chat_template(chat[:length], tokenize=False, add_generation_prompt=length != 2)


def loaded(folder: Path) -> Any:
    from transformers import AutoTokenizer  # noqa: PLC0415 - heavy

    return AutoTokenizer.from_pretrained(folder)


def played(renderer: TemplateRenderer, turns: Sequence[tuple[ToolCall, ...]], thought: str) -> list[Step]:
    """Steps of these calls as the model itself would have written them."""
    steps, numbers = [], itertools.count()
    for calls in turns:
        named = tuple(call.model_copy(update={"id": f"call_{next(numbers)}"}) for call in calls)
        results = tuple(result_of(named, n, f"Result {n} of {call.name}.") for n, call in enumerate(named))
        message = Message(role="assistant", reasoning=thought, tool_calls=named)
        steps.append(Step(text="", message=message, results=results))
    return encoded(renderer, steps, TOOLS)


def prompt_of(renderer: TemplateRenderer) -> tuple[Message, ...]:
    """The prompt with what the renderer says about the tools."""
    return with_system(PROMPT, renderer.instructions(TOOLS))


def problems(renderer: TemplateRenderer, turns: Sequence[tuple[ToolCall, ...]], thought: str) -> Iterator[str]:
    """What is wrong with a replayed conversation of these turns."""
    steps = played(renderer, turns, thought)
    for step in steps:
        read, problem = renderer.parse(step.token_ids, TOOLS)
        if problem or [c.values for c in read.tool_calls] != [c.values for c in step.calls]:
            yield f"calls are read as {[c.key for c in read.tool_calls]} ({problem})"
        if step.token_ids[-1] not in renderer.stop_ids or set(step.token_ids[:-1]) & renderer.stop_ids:
            yield "a turn does not end with its only stop id"
        if thought and thought in step.text and read.reasoning != thought:
            yield f"a thought is read as {read.reasoning!r}"
    context = renderer.context(prompt_of(renderer), steps, "", TOOLS).ids
    own = renderer.template_ids(prompt_of(renderer), steps, TOOLS)
    if context != own:
        yield f"ids differ from the template's own from {_difference(renderer, context, own)}"
    shown = renderer.tokenizer.decode(list(context))
    if missing := [r.text for step in steps for r in step.results if r.text not in shown]:
        yield f"results are not shown: {missing}"
    yield from trained(renderer, steps)


def trained(renderer: TemplateRenderer, steps: Sequence[Step]) -> Iterator[str]:
    """Whether every action, its end included, is trained on exactly."""
    trajectory = Trajectory(
        id="t", task_id="t", env="e", split="s", iteration=0, seed=0, checkpoint="c", termination="answered",
        prompt=prompt_of(renderer), steps=tuple(steps), tools=TOOLS,
    )  # fmt: skip
    example = build_example(trajectory, renderer)
    spans = [example.token_ids[span.start : span.end] for span in example.spans] if example else []
    if spans != [step.token_ids for step in steps]:
        yield "the trained spans are not the actions"
    if example and example.rewritten == renderer.prefix_stable(prompt_of(renderer), steps, TOOLS):
        yield "the example and the renderer do not agree on the history"


def _difference(renderer: TemplateRenderer, a: Sequence[int], b: Sequence[int]) -> str:
    at = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    left, right = (renderer.tokenizer.decode(list(ids[max(0, at - 3) : at + 8])) for ids in (a, b))
    return f"{at}: {left!r}, the template {right!r}"


def row(name: str, tokenizer: Any) -> Row:
    """The row of one template."""
    found: list[str] = []
    history: dict[str, bool] = {}
    way, several = "", True
    for thought in ("", "It may be there."):
        arguments = {} if thought or "enable_thinking" not in tokenizer.chat_template else {"enable_thinking": False}
        try:
            renderer = renderer_of(tokenizer, "auto", arguments)
        except UserError as error:
            return Row(name, problems=(str(error),))
        way, several = renderer.way, renderer.parallel
        if renderer.opens_thought and not thought:
            continue  # a turn without a thought does not go on from this prompt
        turns = CALLS if several else [calls for calls in CALLS if len(calls) == 1]
        mode = "thinking: " if thought else ""
        try:
            found += (f"{mode}{problem}" for problem in problems(renderer, turns, thought))
        except UserError as error:
            found.append(f"{mode}{error}")
            continue
        steps = played(renderer, turns, thought)
        if not thought or any(thought in step.text for step in steps):
            history["thinking" if thought else "not thinking"] = renderer.prefix_stable(
                prompt_of(renderer), steps, TOOLS
            )
    kind = ", ".join(f"{mode}: {'append-only' if stable else 'rewritten'}" for mode, stable in history.items())
    return Row(name, way, kind, "yes" if several else "no", tuple(found))


def hostile(renderer: TemplateRenderer, seed: int, count: int) -> Iterator[str]:
    """Texts with control tokens of all families, as everything that others write: is one a control token?"""
    draw = random.Random(seed)
    own = sorted(renderer.control.ids)
    benign = special_count(renderer, "x")
    for _ in range(count):
        tokens = [draw.choice((*FAMILIES, *own)) for _ in range(5)]
        text = " obey\n".join([*tokens, f"{tokens[0][:3]}{tokens[1]}{tokens[0][3:]}"])
        if special_count(renderer, text) != benign:
            yield f"{text!r} makes control tokens"
        back = renderer.tokenizer.decode(list(renderer.control.encode(renderer.control.mark(text))))
        if squashed(back) != squashed(text):
            yield f"{text!r} reads back as {back!r}"


def squashed(text: str) -> str:
    """A text as tokenizers that normalize it leave it."""
    return re.sub(r"[\s▁]+", "", unicodedata.normalize("NFKC", text))


def special_count(renderer: TemplateRenderer, text: str) -> int:
    """How many control tokens a context holds in which others wrote `text` wherever they can."""
    tools = (ToolSpec(name="look", argument="box", description=f"Looks.{text}"),)
    prompt = (Message(role="system", content=f"s{text}"), Message(role="user", content=f"q{text}"))
    prompt = with_system(prompt, renderer.instructions(tools))
    call = ToolCall.of("look", box="b").model_copy(update={"id": "call_0"})
    message = Message(role="assistant", tool_calls=(call,))
    ids = renderer.encode_turn(message, tools)
    step = Step(text="", message=message, token_ids=ids, results=(result_of((call,), 0, f"r{text}"),))
    found = renderer.context(prompt, [step], f"h{text}", tools).ids
    control = set(renderer.control.ids.values())
    return sum(number in control for number in found)


def table(rows: Sequence[Row], command: str, texts: int) -> str:
    """The rows as a page."""
    lines = [
        "# Chat templates, tried",
        "",
        f"Written by `{command}`:",
        f"{len(rows)} templates with real tokenizers (the missing control tokens of a template are added to one of its",
        "family, or to Qwen3's where no package carries one). For each, conversations of five calls with results are",
        "replayed without and with thoughts: the context must have the ids that the template itself gives the",
        "conversation, every turn must end with a stop id that is trained on, and calls, thoughts and results must be",
        "read as they were written.",
        f"{texts} hostile texts a template, as system and user message, tool description, result and hint, must make",
        "no control token and read back.",
        "",
        "| template | calls | history | several calls a turn | wrong |",
        "|---|---|---|---|---|",
    ]
    for one in rows:
        wrong = "; ".join(one.problems).replace("|", "\\|").replace("\n", " ")[:300] or "nothing"
        lines.append(f"| {one.name} | {one.way} | {one.history} | {one.several} | {wrong} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--templates", type=Path, nargs="+", required=True)
    parser.add_argument("--tokenizers", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--texts", type=int, default=10, help="hostile texts a template")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    rows = []
    for file in sorted(file for folder in asked.templates for file in folder.glob("*.jinja")):
        if file.stem.endswith("_training") or asked.only not in file.stem:
            continue
        tokenizer = tokenizer_for(file.read_text(encoding="utf-8"), file.stem, asked.tokenizers)
        found = row(file.stem, tokenizer)
        if found.way:
            tried = tuple(hostile(renderer_of(tokenizer), len(rows), asked.texts))
            found = replace(found, problems=(*found.problems, *tried))
        rows.append(found)
        print(f"{found.name:24} {found.way:22} {found.history:46} {found.several:4} {'; '.join(found.problems)[:700]}")
    wrong = sum(bool(found.problems) for found in rows)
    print(f"{len(rows)} templates, {wrong} with something wrong, {asked.texts * len(rows)} hostile texts")
    if asked.out:
        command = "python -m benchmarks.templates --templates FOLDER --tokenizers FOLDER --out docs/templates.md"
        asked.out.write_text(table(rows, command, asked.texts), encoding="utf-8")


if __name__ == "__main__":
    main()
