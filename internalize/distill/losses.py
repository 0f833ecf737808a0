"""Per-token losses between a student's and a teacher's next-token distributions: pure tensor functions.

`forward` is KL(teacher || student), `reverse` is KL(student || teacher), both over the full
vocabulary (arXiv 2606.04703: L_off and L_on); `sft` is cross-entropy with the action tokens. Left
out: top-k support, and where positions come from (`scoring`). What must not change: the
directions, one loss a token (the caller averages), arithmetic in float32 or better, no gradient
into the teacher, and no [tokens, vocabulary] tensor larger than one chunk.

Dimensions: `_T` action tokens, `_V` vocabulary, `_D` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]

CHUNK = 256  # action tokens whose logits live at once: 50 MB a copy at a vocabulary of 49,152


def forward_kl(student_logits_TV: Tensor, teacher_logits_TV: Tensor) -> Tensor:
    """KL(teacher || student) = sum_v p log(p / q), p teacher, q student: [T, V], [T, V] -> [T] in nats."""
    return _kl(_log_softmax(teacher_logits_TV), _log_softmax(student_logits_TV))


def reverse_kl(student_logits_TV: Tensor, teacher_logits_TV: Tensor) -> Tensor:
    """KL(student || teacher) = sum_v q log(q / p), p teacher, q student: [T, V], [T, V] -> [T] in nats."""
    return _kl(_log_softmax(student_logits_TV), _log_softmax(teacher_logits_TV))


DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"forward": forward_kl, "reverse": reverse_kl}


def divergence(student_logits_TV: Tensor, teacher_logits_TV: Tensor, kind: str) -> Tensor:
    """Divergence `kind` of `DIVERGENCES` at every token: [T, V], [T, V] -> [T] in nats."""
    return DIVERGENCES[kind](student_logits_TV, teacher_logits_TV)


def cross_entropy(student_logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """-log q(id) at every token: [T, V], [T] -> [T] in nats."""
    return -_log_softmax(student_logits_TV).gather(-1, ids_T.unsqueeze(-1)).squeeze(-1)


def chunked_loss(
    hidden_TD: Tensor,
    head: Head,
    ids_T: Tensor,
    kind: str,
    *,
    teacher_TD: Tensor | None = None,
    teacher_head: Head | None = None,
    chunk: int = CHUNK,
) -> Tensor:
    """Loss at every action token from hidden states: [T, D], [T], teacher [T, D] -> [T] in nats.

    `kind` is "sft" (no teacher needed) or a key of `DIVERGENCES`. `teacher_head` None means that the
    head is frozen and shared. Logits are made `chunk` tokens at a time and, where there are several
    chunks, made again in the backward pass instead of being kept.
    """

    def loss_of(part: slice) -> Tensor:
        student = head(hidden_TD[part])
        if kind == "sft":
            return cross_entropy(student, ids_T[part])
        assert teacher_TD is not None, "a divergence needs the teacher's hidden states"
        with torch.no_grad():
            teacher = (teacher_head or head)(teacher_TD[part])
        return divergence(student, teacher, kind)

    parts = [slice(start, start + chunk) for start in range(0, len(ids_T), chunk)]
    if len(parts) <= 1:  # a single chunk is within the bound: recomputing it would only cost time
        return loss_of(slice(None))
    return torch.cat([checkpoint(loss_of, part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def _log_softmax(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)
