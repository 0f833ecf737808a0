"""Drift: nothing at the starter, exact when the weights move, and the policy keeps its own weights."""

import math

import pytest
import torch
from torch.nn import functional

from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Message, Trajectory
from internalize.training.adapter import new_adapter
from internalize.training.drift import drift, held_out_nll
from internalize.training.examples import build_example
from internalize.training.weights import snapshot
from tests.steps import step
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture
def renderer() -> TemplateRenderer:
    return TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])


def trajectory(renderer: TemplateRenderer) -> Trajectory:
    """Two actions as sampled."""
    steps = tuple(
        step(text=text, token_ids=renderer.encode_text(text), seen=seen)
        for text, seen in (("look[box 1]", "Inside: 3"), ("answer[3]", None))
    )
    prompt = (Message(role="system", content="Boxes."), Message(role="user", content="What is in box 1?"))
    return Trajectory(
        id="t", task_id="t", env="toy", split="dev", iteration=0, seed=0, checkpoint="c", prompt=prompt, steps=steps,
        termination="answered", score=1.0,
    )  # fmt: skip


def moved(by: float) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A tiny model whose adapter has gone away from its start."""
    model = new_adapter(tiny_model(), 2, 0).eval()
    start = snapshot(model)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data += by * torch.randn_like(weight)
    return model, start


def test_the_starter_has_not_moved(renderer: TemplateRenderer) -> None:
    model, start = moved(0.0)
    episode = trajectory(renderer)
    for base in (None, start):
        found = drift(model, renderer, [episode], base, 0, "c")
        assert found.kl_to_base == pytest.approx(0.0, abs=1e-6)
        assert found.tokens == sum(len(step.token_ids) for step in episode.steps)
    assert found.held_out_nll == pytest.approx(math.log(model.config.vocab_size), rel=0.2)  # a random model


def test_kl_and_entropy_are_those_of_plain_passes(renderer: TemplateRenderer) -> None:
    model, start = moved(0.5)
    held = snapshot(model)
    episode = trajectory(renderer)
    found = drift(model, renderer, [episode], start, 1, "c")
    assert all(torch.equal(a, b) for a, b in zip(held.values(), snapshot(model).values(), strict=True))
    example = build_example(episode, renderer)
    assert example is not None
    rows = [p - 1 for span in example.spans for p in range(span.start, span.end)]
    ids = torch.tensor([example.token_ids])
    with torch.no_grad():
        policy = functional.log_softmax(model(input_ids=ids).logits[0, rows].double(), -1)
        with model.disable_adapter():
            base = functional.log_softmax(model(input_ids=ids).logits[0, rows].double(), -1)
    assert found.kl_to_base == pytest.approx(float((policy.exp() * (policy - base)).sum(-1).mean()), rel=1e-3)
    assert found.entropy == pytest.approx(float(-(policy.exp() * policy).sum(-1).mean()), rel=1e-4)
    assert found.kl_to_base > 0


def test_no_episode_is_no_zero(renderer: TemplateRenderer) -> None:
    model, start = moved(0.5)
    found = drift(model, renderer, [], start, 1, "c")
    assert (found.entropy, found.kl_to_base, found.tokens) == (None, None, 0)
    assert found.held_out_nll == held_out_nll(model, renderer)
