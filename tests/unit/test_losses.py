"""Losses against float64, finite differences and the unchunked computation."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from internalize.distill.losses import DIVERGENCES, chunked_loss, cross_entropy, divergence

KINDS = [*DIVERGENCES, "sft"]


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
    assert torch.allclose(cross_entropy(torch.zeros(2, 8), torch.tensor([1, 7])), torch.tensor(8.0).log().expand(2))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str) -> None:
    hidden, teacher, ids, output = _parts(torch.float64)

    def loss(hidden_TD: torch.Tensor) -> torch.Tensor:
        return chunked_loss(hidden_TD, output, ids, kind, teacher_TD=teacher, chunk=4)

    assert torch.autograd.gradcheck(loss, (hidden.requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk", [1, 4, 11, 100])
def test_chunks_change_neither_values_nor_gradients(kind: str, chunk: int) -> None:
    hidden, teacher, ids, output = _parts()
    results = []
    for size in (chunk, 1000):
        own = hidden.clone().requires_grad_()
        output.zero_grad()
        loss = chunked_loss(own, output, ids, kind, teacher_TD=teacher, teacher_head=output, chunk=size)
        loss.sum().backward()
        results.append((loss.detach(), own.grad, output.weight.grad.clone()))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_no_logits_larger_than_a_chunk_are_made_and_none_is_kept() -> None:
    hidden, teacher, ids, output = _parts()
    sizes: list[int] = []
    output.register_forward_hook(lambda _module, _inputs, logits: sizes.append(logits.shape[0]))
    kept: list[int] = []

    def pack_hook(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor):
        loss = chunked_loss(hidden.requires_grad_(), output, ids, "forward", teacher_TD=teacher, chunk=4)
    assert max(sizes) == 4
    assert not any(size >= 3 * 30 for size in kept)
    loss.sum().backward()


def test_the_teacher_gets_no_gradient() -> None:
    hidden, teacher, ids, output = _parts()
    other = nn.Linear(8, 30)
    loss = chunked_loss(
        hidden.requires_grad_(), output, ids, "reverse", teacher_TD=teacher.requires_grad_(), teacher_head=other
    )
    loss.sum().backward()
    assert teacher.grad is None
    assert other.weight.grad is None
