"""Invariant 4: loss falls on action tokens only, and the action's end-of-turn token is one of them."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from internalize.training.head import head
from internalize.training.losses import chunked_loss
from internalize.training.scoring import hidden_states, pack, pack_clean, teacher_hidden
from tests.trajectories import random_example


@pytest.mark.parametrize("kind", ["forward", "reverse", "sft"])
def test_only_predictions_of_action_tokens_get_a_gradient(model: LlamaForCausalLM, kind: str) -> None:
    example = random_example(3)
    packed = pack_clean(example.token_ids, example.spans)
    teacher = teacher_hidden(model, pack(example))
    seen: list[torch.Tensor] = []
    model.model.register_forward_hook(lambda _module, _inputs, output: seen.append(output.last_hidden_state))
    hidden = hidden_states(model, packed)
    seen[0].retain_grad()
    chunked_loss(hidden, head(model), packed.targets, kind, teacher_TD=teacher).sum().backward()
    touched = set(seen[0].grad[0].abs().sum(-1).nonzero().flatten().tolist())
    predicting = {place for span in example.spans for place in range(span.start - 1, span.end - 1)}
    # Where the step has no experience before it, teacher and student agree and a divergence has no gradient.
    assert touched == predicting if kind == "sft" else touched <= predicting
    assert touched


def test_what_follows_the_last_action_changes_nothing(model: LlamaForCausalLM) -> None:
    example = random_example(4)
    end = example.spans[-1].end
    other = (*example.token_ids[:end], *[5] * 20)
    first, second = pack_clean(example.token_ids, example.spans), pack_clean(other, example.spans)
    assert torch.equal(first.targets, second.targets)
    assert torch.equal(hidden_states(model, first), hidden_states(model, second))


def test_the_end_of_turn_token_is_a_target_and_predicted_from_the_token_before_it() -> None:
    example = random_example(5)
    packed = pack_clean(example.token_ids, example.spans)
    last = torch.tensor([span.end - span.start for span in example.spans]).cumsum(0) - 1
    assert packed.targets[last].tolist() == [example.token_ids[span.end - 1] for span in example.spans]
    assert packed.rows[last].tolist() == [span.end - 2 for span in example.spans]
