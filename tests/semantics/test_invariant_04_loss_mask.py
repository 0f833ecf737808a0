"""Invariant 4: loss falls on action tokens only, and the action's end-of-turn token is one of them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from internalize.distill.losses import chunked_loss
from internalize.distill.scoring import head, pack, pack_clean, student_hidden, teacher_hidden
from tests.trajectories import random_example


@pytest.mark.parametrize("kind", ["forward", "reverse", "sft"])
def test_only_predictions_of_action_tokens_get_a_gradient(model: LlamaForCausalLM, kind: str) -> None:
    example = random_example(3)
    kept: list[torch.Tensor] = []
    hook = model.model.register_forward_hook(lambda _module, _inputs, output: kept.append(output.last_hidden_state))
    hidden = student_hidden(model, example.token_ids, example.spans)
    hook.remove()
    kept[0].retain_grad()
    rows = pack_clean(example.token_ids, example.spans).rows
    teacher = teacher_hidden(model, pack(example))
    targets = pack_clean(example.token_ids, example.spans).targets
    chunked_loss(kept[0][0, rows], head(model), targets, kind, teacher_TD=teacher).sum().backward()
    assert hidden.shape == teacher.shape
    touched = kept[0].grad[0].abs().sum(-1) > 0
    predicting = {place for span in example.spans for place in range(span.start - 1, span.end - 1)}
    assert set(touched.nonzero().flatten().tolist()) <= predicting
    if kind == "sft":
        assert set(touched.nonzero().flatten().tolist()) == predicting


def test_another_last_observation_changes_no_loss(model: LlamaForCausalLM) -> None:
    example = random_example(4)
    end = example.spans[-1].end
    other = (*example.token_ids[:end], *[5] * (len(example.token_ids) - end))
    for ids in (example.token_ids, other):
        assert ids[:end] == example.token_ids[:end]
    first = student_hidden(model, example.token_ids, example.spans)
    assert torch.equal(first, student_hidden(model, other, example.spans))
    packed = pack_clean(other, example.spans)
    assert packed.targets.tolist() == pack_clean(example.token_ids, example.spans).targets.tolist()


def test_the_end_of_turn_token_is_a_target_and_predicted_from_the_token_before_it() -> None:
    example = random_example(5)
    packed = pack_clean(example.token_ids, example.spans)
    last = torch.tensor([span.end - span.start for span in example.spans]).cumsum(0) - 1
    assert packed.targets[last].tolist() == [example.token_ids[span.end - 1] for span in example.spans]
    assert packed.rows[last].tolist() == [span.end - 2 for span in example.spans]
