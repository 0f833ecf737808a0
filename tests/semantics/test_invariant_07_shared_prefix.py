"""Invariant 7: shared-prefix scoring equals step-by-step scoring to 1e-4 in fp32, values and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from internalize.distill.scoring import head, hidden_states, pack, pack_branches, student_hidden, teacher_hidden
from internalize.records import DistillExample
from tests.trajectories import logits_one_by_one, random_example

CLOSE = {"atol": 1e-4, "rtol": 0.0}


def _gradients(model: LlamaForCausalLM, logits: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a fixed random weighting of the logits: an equal sum would hide swapped rows."""
    model.zero_grad()
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    (logits.log_softmax(-1) * weights).mean().backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("hint", ["stepwise", "global", "none"])
@pytest.mark.parametrize("seed", range(6))
def test_teacher_values(model: LlamaForCausalLM, seed: int, hint: str) -> None:
    example = random_example(seed, steps=1 + seed, hint=hint)
    packed = head(model)(teacher_hidden(model, pack(example)))
    torch.testing.assert_close(packed, logits_one_by_one(model, example), **CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_through_the_packed_path(model: LlamaForCausalLM, seed: int) -> None:
    example = random_example(seed, steps=4)
    packed = _gradients(model, head(model)(hidden_states(model, pack(example))))
    slow = _gradients(model, logits_one_by_one(model, example))
    assert packed.keys() == slow.keys()
    for name, gradient in packed.items():
        torch.testing.assert_close(gradient, slow[name], msg=name, **CLOSE)


@pytest.mark.parametrize("seed", range(3))
def test_gradients_through_the_student_path(model: LlamaForCausalLM, seed: int) -> None:
    example = random_example(seed, steps=4)
    bare = example.model_copy(update={"spans": tuple(span.model_copy(update={"branch": ()}) for span in example.spans)})
    student = _gradients(model, head(model)(student_hidden(model, example.token_ids, example.spans)))
    slow = _gradients(model, logits_one_by_one(model, bare))
    for name, gradient in student.items():
        torch.testing.assert_close(gradient, slow[name], msg=name, **CLOSE)


def test_eager_attention_understands_the_mask_too(model: LlamaForCausalLM) -> None:
    example = random_example(1)
    expected = teacher_hidden(model, pack(example))
    model.set_attn_implementation("eager")
    torch.testing.assert_close(teacher_hidden(model, pack(example)), expected, **CLOSE)


def test_several_branches_a_step_and_other_actions_at_a_clean_context(model: LlamaForCausalLM) -> None:
    ids = random_example(0).token_ids
    branches = [(6, (50, 51), (7, 8, 9)), (6, (60,), (7, 8)), (6, (), ids[6:9]), (6, (), (90, 91, 92)), (9, (), (5,))]
    packed = pack_branches(ids, branches)
    got = head(model)(hidden_states(model, packed))
    whole = [torch.tensor([[*ids[:fork], *hint, *action]]) for fork, hint, action in branches]
    slow = [model(row).logits[0, -1 - len(action) : -1] for row, (_, _, action) in zip(whole, branches, strict=True)]
    torch.testing.assert_close(got, torch.cat(slow), **CLOSE)


def test_packing_saves_tokens() -> None:
    example: DistillExample = random_example(0, steps=12)
    step_by_step = sum(span.end + len(span.branch) for span in example.spans)
    assert len(pack(example).ids) < step_by_step / 3
