"""Invariant 7: shared-prefix scoring equals step-by-step scoring to 1e-4 in fp32, values and gradients.

Values absolutely, gradients relative to the norm of each weight's gradient.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from internalize.errors import UserError
from internalize.interfaces import Scorer
from internalize.records import DistillExample
from internalize.records.packed import Segment
from internalize.training.adapter import new_adapter
from internalize.training.attention import Layout, block_mask, branch_attention, visible
from internalize.training.head import head
from internalize.training.losses import DIVERGENCES, chunked_loss, divergence
from internalize.training.scoring import (
    PackedScorer,
    hidden_states,
    join,
    pack,
    pack_branches,
    pack_clean,
    student_hidden,
    teacher_hidden,
    teacher_states,
)
from internalize.training.weights import trained
from tests.seams.step_scorer import StepScorer
from tests.tiny import tiny_model
from tests.trajectories import contexts_of, logits_one_by_one, random_example, rewritten_example

CLOSE = {"atol": 1e-4, "rtol": 0.0}
RELATIVE = 1e-4
BLOCK = 128  # side of the blocks of flex attention


Gradients = dict[str, torch.Tensor]


def _gradients(model: torch.nn.Module, logits: torch.Tensor) -> Gradients:
    """Gradients of a fixed random weighting of the logits: an equal sum would hide swapped rows."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0))
    return _gradients_of(model, (logits.log_softmax(-1) * weights).mean())


def _gradients_of(model: torch.nn.Module, loss: torch.Tensor) -> Gradients:
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


def _require_same(fast: Gradients, slow: Gradients) -> None:
    assert fast.keys() == slow.keys()
    for name, gradient in slow.items():
        assert gradient.norm() > 0, name
        assert (fast[name] - gradient).norm() <= RELATIVE * gradient.norm(), name


def _policy(*, lora: bool) -> torch.nn.Module:
    """With an adapter that has an effect: in a new one half of the weights have no gradient."""
    if not lora:
        return tiny_model()
    policy = new_adapter(tiny_model(), 4, 0)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trained(policy).values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=draw))
    return policy


def _step_by_step(model: torch.nn.Module, example: DistillExample, padding: str, *, shown: bool) -> torch.Tensor:
    """Logits [A, V] of every step's own context: one pass a step, or one padded batch of all steps."""
    contexts = contexts_of(example, shown=shown)
    if padding == "none":
        return torch.cat([model(torch.tensor([c + a])).logits[0, len(c) - 1 : -1] for c, a in contexts])
    width = max(len(context) + len(action) for context, action in contexts)
    ids, mask = torch.zeros(len(contexts), width, dtype=torch.long), torch.zeros(len(contexts), width, dtype=torch.long)
    places = []
    for row, (context, action) in enumerate(contexts):
        length = len(context) + len(action)
        start = width - length if padding == "left" else 0
        ids[row, start : start + length] = torch.tensor(context + action)
        mask[row, start : start + length] = 1
        places.append(slice(start + len(context) - 1, start + length - 1))
    logits = model(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    return torch.cat([logits[row, place] for row, place in enumerate(places)])


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    steps=st.integers(1, 8),
    lora=st.booleans(),
    padding=st.sampled_from(["none", "left", "right"]),
    kind=st.sampled_from([*DIVERGENCES, "sft"]),
)
def test_a_distillation_step_has_the_gradients_of_step_by_step(
    seed: int,
    steps: int,
    lora: bool,  # noqa: FBT001
    padding: str,
    kind: str,
) -> None:
    """Teacher, student and loss as they are trained, against separate passes, alone or padded to a batch."""
    example = random_example(seed, steps=steps)
    assume(kind == "sft" or any(span.branch for span in example.spans))  # else the teacher is the student
    policy = _policy(lora=lora)
    packed = pack_clean(example.token_ids, example.spans)
    teacher = teacher_hidden(policy, pack(example))
    loss = chunked_loss(hidden_states(policy, packed), head(policy), packed.targets, kind, teacher_TD=teacher, chunk=5)
    fast = _gradients_of(policy, loss.mean())
    own = _step_by_step(policy, example, padding, shown=False)
    if kind == "sft":
        expected = divergence(own, own, "sft", packed.targets)
    else:
        with torch.no_grad():
            other = _step_by_step(policy, example, padding, shown=True)
        expected = divergence(own, other, kind)
    torch.testing.assert_close(loss, expected, **CLOSE)
    _require_same(fast, _gradients_of(policy, expected.mean()))


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
    _require_same(packed, _gradients(model, logits_one_by_one(model, example)))


@pytest.mark.parametrize("seed", range(3))
def test_gradients_through_the_student_path(model: LlamaForCausalLM, seed: int) -> None:
    example = random_example(seed, steps=4)
    bare = example.model_copy(update={"spans": tuple(span.model_copy(update={"branch": ()}) for span in example.spans)})
    student = _gradients(model, head(model)(student_hidden(model, example.token_ids, example.spans)))
    _require_same(student, _gradients(model, logits_one_by_one(model, bare)))


@pytest.mark.parametrize("before", ["eager", "sdpa"])
def test_whatever_attention_the_model_came_with(model: LlamaForCausalLM, before: str) -> None:
    example = random_example(1)
    expected = logits_one_by_one(model, example)
    ids = torch.tensor([example.token_ids])
    plain = model(ids).logits
    model.set_attn_implementation(before)
    torch.testing.assert_close(head(model)(teacher_hidden(model, pack(example))), expected, **CLOSE)
    torch.testing.assert_close(model(ids).logits, plain, **CLOSE)  # and a pass without branches is what it was


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.lists(st.integers(1, 6), min_size=2, max_size=4), full=st.booleans())
def test_several_trajectories_in_one_pass(seed: int, steps: list[int], full: bool) -> None:  # noqa: FBT001
    policy = _policy(lora=not full)
    examples = [random_example(seed + place, steps=count) for place, count in enumerate(steps)]
    packs = [pack(example) for example in examples]
    together = head(policy)(hidden_states(policy, join(packs)))
    alone = torch.cat([logits_one_by_one(policy, example) for example in examples])
    torch.testing.assert_close(together, alone, **CLOSE)
    _require_same(_gradients(policy, together), _gradients(policy, alone))
    assert join(packs).targets.tolist() == [token for packed in packs for token in packed.targets.tolist()]


@pytest.mark.parametrize("scorer", [PackedScorer(0), PackedScorer(90), PackedScorer(10_000), StepScorer()])
def test_a_teacher_states_several_in_one_pass_or_one_by_one(model: LlamaForCausalLM, scorer: Scorer) -> None:
    packs = [pack(random_example(seed, steps=1 + seed)) for seed in range(5)]
    answers = teacher_states(model, packs, scorer)
    for answer, packed in zip(answers, packs, strict=True):
        torch.testing.assert_close(answer, teacher_hidden(model, packed), **CLOSE)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("hint", ["stepwise", "none"])
@pytest.mark.parametrize("seed", range(2))
def test_contexts_that_a_template_rewrites(
    model: LlamaForCausalLM,
    seed: int,
    hint: str,
    checkpointing: bool,  # noqa: FBT001
) -> None:
    """No context starts with the one before it; student and teacher still run in one pass, gradients included."""
    example = rewritten_example(seed, steps=4, hint=hint)
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    for packed, shown in ((pack(example), True), (pack_clean(example.token_ids, example.spans), False)):
        contexts = contexts_of(example, shown=shown)
        assert len(packed.ids) < sum(len(context) for context, _ in contexts)
        got = head(model)(hidden_states(model, packed))
        slow = torch.cat([model(torch.tensor([c + a])).logits[0, len(c) - 1 : -1] for c, a in contexts])
        torch.testing.assert_close(got, slow, **CLOSE)
        _require_same(_gradients(model, got), _gradients(model, slow))


def test_attention_that_would_be_wrong_is_refused(model: LlamaForCausalLM) -> None:
    states = torch.zeros(1, 4, 3, 8)
    layout = Layout([Segment(0, 2), Segment(2, 3, 0, 1)], states)
    with pytest.raises(UserError, match="sliding_window"):
        branch_attention(model, states, states, states, None, layout=layout, sliding_window=1)


def test_the_block_mask_says_the_same() -> None:
    """Its blocks, laid out densely; the kernel itself runs below, where there is a GPU."""
    packed = join([pack(random_example(seed, steps=6)) for seed in (1, 2)])
    length, device = len(packed.ids), torch.device("cpu")
    dense = block_mask(packed.segments, device).to_dense()[0, 0]
    whole = torch.zeros(len(dense) * BLOCK, len(dense) * BLOCK, dtype=torch.bool)
    order = torch.arange(length)
    whole[:length, :length] = visible(packed.segments, device)(None, None, order[:, None], order[None, :])
    needed = whole.view(len(dense), BLOCK, len(dense), BLOCK).any(3).any(1)
    assert torch.equal(dense.bool(), needed)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention is used on CUDA devices only")
@pytest.mark.parametrize("seed", range(3))
def test_flex_attention_on_a_gpu(model: LlamaForCausalLM, seed: int) -> None:
    example = random_example(seed, steps=6)
    expected = logits_one_by_one(model, example)
    slow = _gradients(model, expected)
    gpu = tiny_model().to("cuda")
    got = head(gpu)(hidden_states(gpu, pack(example)))
    torch.testing.assert_close(got.cpu(), expected, atol=1e-3, rtol=1e-3)
    for name, gradient in _gradients(gpu, got.cpu()).items():
        torch.testing.assert_close(gradient.cpu(), slow[name], msg=name, atol=1e-3, rtol=1e-3)


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
