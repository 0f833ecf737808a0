"""Losses against float64, finite differences, hand-worked numbers, limits and the unchunked computation."""

from __future__ import annotations

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from internalize.training.losses import (
    DIVERGENCES,
    Anchor,
    Objective,
    chunked_loss,
    clipped_ratio,
    divergence,
    sampled_reverse_kl,
)

KINDS = [*DIVERGENCES, "sft"]
OBJECTIVES = [
    *(Objective(kind) for kind in KINDS),
    *(Objective(kind, 0.3, "topk", 5) for kind in DIVERGENCES),
    Objective("policy_gradient"),
    Objective("policy_gradient", clip=0.5, failed=True),
    Objective("reverse", support="sampled"),
]
NAMES = [f"{o.kind}-{o.support}" for o in OBJECTIVES]


def _parts(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, nn.Linear]:
    torch.manual_seed(0)
    output = nn.Linear(8, 30, bias=False).to(dtype)
    return torch.randn(11, 8, dtype=dtype), torch.randn(11, 8, dtype=dtype), torch.randint(0, 30, (11,)), output


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_float32_agrees_with_float64_at_a_real_vocabulary(kind: str) -> None:
    torch.manual_seed(0)
    student, teacher = 5 * torch.randn(4, 49_152), 5 * torch.randn(4, 49_152)
    exact = divergence(student.double(), teacher.double(), kind)
    torch.testing.assert_close(divergence(student, teacher, kind).double(), exact, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_half_precision_is_computed_in_float32(kind: str) -> None:
    logits = torch.randn(3, 20).bfloat16()
    assert divergence(logits, logits.flip(0), kind).dtype == torch.float32


@pytest.mark.parametrize("kind", list(DIVERGENCES))
def test_zero_only_between_equals(kind: str) -> None:
    logits = torch.randn(5, 20)
    assert divergence(logits + 3, logits, kind).abs().max() < 1e-6
    assert (divergence(logits.flip(0)[:2], logits[:2], kind) > 1e-3).all()


def test_cross_entropy_of_a_uniform_student() -> None:
    logits = torch.zeros(2, 8)
    losses = divergence(logits, logits.flip(0), "sft", torch.tensor([1, 7]))
    assert torch.allclose(losses, torch.tensor(8.0).log().expand(2))


@pytest.mark.slow
@pytest.mark.parametrize("objective", [o for o in OBJECTIVES if o.support != "sampled"], ids=NAMES[:-1])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradcheck(objective: Objective, *, frozen: bool) -> None:
    """The sampled estimator is left out: its gradient is not that of its value, on purpose."""
    hidden, teacher, ids, output = _parts(torch.float64)
    output.requires_grad_(not frozen)
    anchor = Anchor(teacher.flip(0), output, 0.7)

    def loss(hidden_TD: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden_TD, output, ids, objective, teacher_TD=teacher, anchor=anchor, chunk=4)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(),))


@pytest.mark.parametrize("objective", OBJECTIVES, ids=NAMES)
@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("frozen", [True, False])
def test_chunks_change_neither_values_nor_gradients(objective: Objective, chunk: int, *, frozen: bool) -> None:
    hidden, teacher, ids, output = _parts()
    output.requires_grad_(not frozen)
    upstream, results = torch.rand(11), []
    for size in (chunk, 1000):
        own = hidden.clone().requires_grad_()
        output.zero_grad()
        loss = chunked_loss(own, output, ids, objective, teacher_TD=teacher, teacher_head=output, chunk=size)
        (upstream * loss).sum().backward()
        results.append((loss.detach(), own.grad, None if frozen else output.weight.grad.clone()))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("frozen", [True, False])
def test_no_logits_larger_than_a_chunk_are_made_and_none_is_kept(*, frozen: bool) -> None:
    hidden, teacher, ids, output = _parts()
    output.requires_grad_(not frozen)
    sizes: list[int] = []
    output.register_forward_hook(lambda _module, _inputs, logits: sizes.append(logits.shape[0]))
    saved: list[weakref.ref[torch.Tensor]] = []

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(weakref.ref(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        loss = chunked_loss(hidden.requires_grad_(), output, ids, "forward", teacher_TD=teacher, chunk=4)
    assert max(sizes) == 4
    kept = [tensor.numel() for reference in saved if (tensor := reference()) is not None]
    assert not any(size >= 3 * 30 for size in kept)
    loss.sum().backward()


def test_nothing_is_differentiated_where_nothing_asks_for_it() -> None:
    hidden, teacher, ids, output = _parts()
    with torch.no_grad():
        loss = chunked_loss(hidden.requires_grad_(), output.eval(), ids, "forward", teacher_TD=teacher, chunk=4)
    assert not loss.requires_grad


def test_an_anchor_adds_its_weight_times_the_reverse_kl() -> None:
    hidden, teacher, ids, output = _parts()
    plain = chunked_loss(hidden, output, ids, "sft")
    held = chunked_loss(hidden, output, ids, "reverse", teacher_TD=teacher)
    both = chunked_loss(hidden, output, ids, "sft", anchor=Anchor(teacher, output, 0.25))
    torch.testing.assert_close(both, plain + 0.25 * held)


def test_js_tends_to_forward_and_to_reverse_and_is_bounded() -> None:
    torch.manual_seed(0)
    student, teacher = 3 * torch.randn(6, 20, dtype=torch.float64), 3 * torch.randn(6, 20, dtype=torch.float64)
    small = 1e-8
    near_forward = divergence(student, teacher, Objective("js", small)) / small
    torch.testing.assert_close(near_forward, divergence(student, teacher, "forward"), rtol=1e-2, atol=1e-3)
    near_reverse = divergence(student, teacher, Objective("js", 1 - small)) / small
    torch.testing.assert_close(near_reverse, divergence(student, teacher, "reverse"), rtol=1e-2, atol=1e-3)
    half = divergence(student, teacher, Objective("js", 0.5))
    torch.testing.assert_close(half, divergence(teacher, student, Objective("js", 0.5)))
    assert (half < math.log(2)).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), kind=st.sampled_from(list(DIVERGENCES)), k=st.integers(1, 19))
def test_topk_is_a_lower_bound_and_all_of_the_vocabulary_is_the_full_divergence(seed: int, kind: str, k: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    student, teacher = (4 * torch.randn(3, 20, generator=draw, dtype=torch.float64) for _ in range(2))
    full = divergence(student, teacher, kind)
    some = divergence(student, teacher, Objective(kind, support="topk", top_k=k))
    assert (some <= full + 1e-9).all()
    assert (some >= -1e-9).all()
    for whole in (20, 1000):
        assert torch.equal(divergence(student, teacher, Objective(kind, support="topk", top_k=whole)), full)


def test_topk_keeps_the_likeliest_of_the_one_whose_expectation_it_is() -> None:
    """p = (.7, .2, .1), q = (.1, .2, .7), k = 1, worked by hand: the others are one bucket."""
    p, q = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.1, 0.2, 0.7]])
    forward = divergence(q.log(), p.log(), Objective("forward", support="topk", top_k=1))  # keeps id 0
    assert forward.item() == pytest.approx(0.7 * math.log(0.7 / 0.1) + 0.3 * math.log(0.3 / 0.9), abs=1e-6)
    reverse = divergence(q.log(), p.log(), Objective("reverse", support="topk", top_k=1))  # keeps id 2
    assert reverse.item() == pytest.approx(0.7 * math.log(0.7 / 0.1) + 0.3 * math.log(0.3 / 0.9), abs=1e-6)


def test_a_rest_without_mass_gives_no_nan() -> None:
    sure = torch.tensor([[200.0, 0.0, 0.0, 0.0]]).requires_grad_()
    loss = divergence(sure, torch.zeros(1, 4), Objective("forward", support="topk", top_k=2))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(sure.grad).all()


def test_the_sampled_estimator_is_unbiased_in_value_and_gradient() -> None:
    """By enumeration: the mean over every token with its probability under the student."""
    torch.manual_seed(0)
    student = torch.randn(7, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(7, dtype=torch.float64)
    exact = divergence(student[None], teacher[None], "reverse")[0]
    (exact_gradient,) = torch.autograd.grad(exact, student)
    log_q, log_p = student.log_softmax(0), teacher.log_softmax(0)
    estimates = sampled_reverse_kl(log_q, log_p)
    q = log_q.exp().detach()
    assert (q * estimates.detach()).sum().item() == pytest.approx(exact.item(), abs=1e-12)
    (gradient,) = torch.autograd.grad((q * estimates).sum(), student)
    torch.testing.assert_close(gradient, exact_gradient)
    variance = (q * estimates.detach() ** 2).sum() - exact**2  # what its docstring says
    assert variance > 0
    assert sampled_reverse_kl(log_q, log_q).abs().max() == 0


@pytest.mark.parametrize(
    ("ratio", "failed", "loss", "moves"),
    [
        (1.0, False, -1.0, True),
        (1.15, False, -1.15, True),
        (1.5, False, -1.2, False),  # what succeeded is likelier by more than the clip: left alone
        (0.5, False, -0.5, True),  # less likely than it was played: raised
        (1.0, True, -1.0, True),
        (0.85, True, -0.85, True),
        (0.5, True, -0.8, False),  # what failed is less likely by more than the clip: left alone
        (1.5, True, -1.5, True),
    ],
)
def test_a_policy_gradient_stops_at_its_clip(ratio: float, failed: bool, loss: float, moves: bool) -> None:  # noqa: FBT001
    """PPO's min(r A, clip(r) A), divided by -A, with its gradient -r grad log q."""
    log_p = torch.tensor([-2.0], dtype=torch.float64)
    log_q = (log_p + math.log(ratio)).requires_grad_()
    found = clipped_ratio(log_q, log_p, Objective("policy_gradient", failed=failed))
    assert found.item() == pytest.approx(loss)
    (gradient,) = torch.autograd.grad(found.sum(), log_q)
    assert gradient.item() == pytest.approx(-ratio if moves else 0.0)


def test_the_teacher_gets_no_gradient() -> None:
    hidden, teacher, ids, output = _parts()
    other = nn.Linear(8, 30)
    loss = chunked_loss(
        hidden.requires_grad_(), output, ids, "reverse", teacher_TD=teacher.requires_grad_(), teacher_head=other
    )
    loss.sum().backward()
    assert teacher.grad is None
    assert other.weight.grad is None
