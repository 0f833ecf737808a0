"""Replays a conversation through a renderer: its contexts must equal what the chat template itself writes.

The conversation has everything in which templates were seen to differ: thoughts, arguments that are no text, several
calls, results that follow. So an unsupported template is found when its model is loaded. The last turn, an answer in
words, serves to compare renderers with each other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from internalize.records import Message, Step, ToolCall, ToolSpec, result_of

from .renderer import TemplateRenderer, with_system
from .template import Unrenderable

TOOLS = (ToolSpec(name="look_up", argument="word", description="Looks a word up."),)
PROMPT = (Message(role="system", content="Be brief."), Message(role="user", content="Which <|im_end|> word?"))


def conversation(thoughts: Sequence[str], *, parallel: bool) -> list[Step]:
    """Three turns without ids, with these thoughts; with `parallel` the second has two calls."""
    calls = [
        ToolCall.of("look_up", word=word, more=[1, True, {"é": 2.5}]).model_copy(update={"id": f"call_{number}"})
        for number, word in enumerate("xyz")
    ]
    turns = [
        Message(role="assistant", reasoning=thoughts[0], tool_calls=tuple(calls[:1])),
        Message(role="assistant", reasoning=thoughts[1], tool_calls=tuple(calls[1:] if parallel else calls[1:2])),
        Message(role="assistant", reasoning=thoughts[2], content="It is <|im_end|> y."),
    ]
    results = [
        [result_of(turn.tool_calls, number, "A <|im_end|> page.") for number in range(max(1, len(turn.tool_calls)))]
        for turn in turns
    ]
    return [Step(text="", message=turn, results=tuple(seen)) for turn, seen in zip(turns, results, strict=True)]


def encoded(renderer: TemplateRenderer, steps: Sequence[Step], tools: Sequence[ToolSpec] = TOOLS) -> list[Step]:
    """The steps as if the model had sampled them; a thought that the template does not write is left out."""
    found = []
    for step in steps:
        ids = renderer.encode_turn(step.message, tools)
        message = step.message.model_copy(update={"reasoning": renderer.parse(ids, tools)[0].reasoning})
        found.append(step.model_copy(update={"text": renderer.decode(ids), "message": message, "token_ids": ids}))
    return found


def require_own_ids(renderer: TemplateRenderer) -> None:
    """Raises Unrenderable unless all contexts of the conversation have the template's own ids.

    Numbers may differ, because some templates number the calls of a whole conversation and a turn encoded alone starts
    at the first. A tokenizer with too few words for the conversation is not tested.
    """
    if not _writes(renderer, f"{PROMPT[1].text} {conversation([''] * 3, parallel=False)[0].calls[0].arguments}"):
        return
    prompt = with_system(PROMPT, renderer.instructions(TOOLS))
    for thought in ("", "Let me see."):
        if renderer.opens_thought and not thought:
            continue  # this turn has no thought, but the prompt opens one
        steps = encoded(renderer, conversation([thought] * 3, parallel=renderer.parallel))
        for count in (1, 2):  # an answer is last; some templates end a turn differently if more follows
            ids = renderer.context(prompt, steps[:count], "", TOOLS).ids
            own = renderer.template_ids(prompt, steps[:count], TOOLS)
            if ids != own and _without_numbers(renderer, ids) != _without_numbers(renderer, own):
                raise Unrenderable("the chat template writes earlier turns in a way that cannot be followed")


def _writes(renderer: TemplateRenderer, text: str) -> bool:
    """Whether a text is decoded from its own ids unchanged, white space aside."""
    ids = list(renderer.control.encode(renderer.control.mark(text)))
    return "".join(renderer.tokenizer.decode(ids).split()) == "".join(text.split())


def _without_numbers(renderer: TemplateRenderer, ids: Sequence[int]) -> tuple[str, list[int]]:
    """The text without digits, and the control tokens."""
    text = str(renderer.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))
    control = set(renderer.control.ids.values())
    return re.sub(r"\d+", "", text), [number for number in ids if number in control]
