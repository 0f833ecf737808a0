"""Invariant 3: sampled token ids are never encoded again; each context starts with the ids already seen."""

import random

from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message, Step
from tests.steps import turn
from tests.tiny import STRIPS_THINKING, tiny_tokenizer

PROMPT = (Message(role="system", content="s"), Message(role="user", content="q"))


def test_odd_tokenizations_survive_as_sampled() -> None:
    """Ids cut byte by byte, as no encoder would, stay as they are, and prefixes hold turn after turn."""
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    draw = random.Random(0)
    end = renderer.encode_text("")[-1]
    turns: list[Step] = []
    for number in range(6):
        action = [i for letter in "search[x y]" for i in renderer.encode_text(letter)[:-1]]
        if draw.random() < 0.5:
            turns.append(turn((*action, end), "stop", f"seen {number}"))
        else:
            turns.append(turn(tuple(action), "length", f"seen {number}"))
        before = renderer.context(PROMPT, turns[:-1]).ids
        after = renderer.context(PROMPT, turns).ids
        sampled = turns[-1].token_ids
        assert after[: len(before) + len(sampled)] == before + sampled
        assert renderer.encode_text("search[x y]")[:-1] != tuple(action)
    assert renderer.prefix_stable(PROMPT, turns)


def test_a_template_that_rewrites_history_says_so() -> None:
    renderer = TemplateRenderer(tiny_tokenizer(STRIPS_THINKING), TOOL_FORMATS["bracket"])
    turns = [turn(renderer.encode_text(f"<think>t{n}</think>look[{n}]"), "stop", "o") for n in range(2)]
    assert not renderer.prefix_stable(PROMPT, turns)
