"""Invariant 2: a step-wise hint ends the last message, a global one the system message; without, nothing differs."""

from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message
from tests.steps import turn
from tests.tiny import tiny_tokenizer

PROMPT = (Message(role="system", content="Boxes."), Message(role="user", content="Which number?"))
HINT = "Experience:\n- Look first."


def contexts(hint: str) -> tuple[TemplateRenderer, str, tuple[int, ...], int]:
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    turns = [turn(renderer.encode_text("look[1]"), "stop", "Inside: 4")]
    context = renderer.context(PROMPT, turns, hint)
    return renderer, str(renderer.tokenizer.decode(list(context.ids))), context.ids, context.fork


def test_a_stepwise_hint_stands_before_the_end_of_the_last_message() -> None:
    renderer, text, ids, fork = contexts(HINT)
    assert text.endswith(f"Inside: 4\n{HINT}<|im_end|>\n<|im_start|>assistant\n")
    _, clean, clean_ids, _ = contexts("")
    assert clean.endswith("Inside: 4<|im_end|>\n<|im_start|>assistant\n")
    assert ids[:fork] == clean_ids[:fork]
    assert renderer.tokenizer.decode(list(ids[fork:])).lstrip("\n").startswith("Experience:")


def test_a_global_hint_ends_the_system_message() -> None:
    renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    shown = renderer.tokenizer.decode(list(renderer.context(with_system(PROMPT, HINT), ()).ids))
    assert str(shown).startswith(f"<|im_start|>system\nBoxes.\n{HINT}<|im_end|>")


def test_without_experience_the_ids_are_the_clean_ones() -> None:
    _, _, ids, fork = contexts("")
    assert contexts("")[2] == ids
    assert fork == len(ids)
