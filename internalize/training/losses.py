"""Losses at single tokens, between the next-token distributions of a student (q) and a teacher (p).

Each divergence is a function of log-probabilities; `chunked_loss` takes them from hidden states, with no tensor over
[tokens, vocabulary] larger than a chunk. Arithmetic is in float32 or better, and the teacher gets no gradient.

Dimensions: `_T` action tokens, `_V` vocabulary, `_D` hidden size, `_K` compared entries (V, or top-k and a rest).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

Head = Callable[[Tensor], Tensor]
Compare = Callable[[Tensor, Tensor, float], Tensor]  # log q, log p, alpha

# Logits in memory at once, in about eight copies. On a CPU that is 21 tokens of a vocabulary of 49,152; twice as many
# make a model of four layers 7 % faster. A GPU needs larger pieces.
LOGITS = {"cpu": 2**20, "cuda": 2**25}
FEWEST = 16  # tokens at once, whatever the vocabulary


class Divergence(NamedTuple):
    """A divergence, and the distribution whose most likely tokens support "topk" keeps."""

    value: Compare  # [T, K], [T, K] -> [T] in nats
    guide: Compare  # [T, V], [T, V] -> [T, V]


@dataclass(frozen=True)
class Objective:
    """What is minimized, with the fields of the divergences in config/regime.py.

    `kind` is a key of `DIVERGENCES`, or "sft" for cross-entropy with the action tokens, which needs no teacher, or
    "policy_gradient", whose teacher is the policy that played.
    """

    kind: str
    alpha: float = 0.5  # of "js"
    support: str = "full"  # "full", "topk" or "sampled"
    top_k: int = 64
    clip: float = 0.2  # of "policy_gradient"
    failed: bool = False  # of "policy_gradient": whether the weight of these tokens is negative


class Anchor(NamedTuple):
    """A reference for the student: `weight` times KL(student || reference) is added at every token."""

    hidden_TD: Tensor
    head: Head
    weight: float


def _forward(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:  # noqa: ARG001 - one signature for all
    """KL(p || q) = sum p log(p / q): L_off of arXiv 2606.04703."""
    return _kl(log_p, log_q)


def _reverse(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:  # noqa: ARG001
    """KL(q || p) = sum q log(q / p): L_on of arXiv 2606.04703."""
    return _kl(log_q, log_p)


def _js(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    """Jensen-Shannon: alpha KL(p || m) + (1 - alpha) KL(q || m), m = alpha p + (1 - alpha) q.

    The generalized Jensen-Shannon divergence of GKD (arXiv 2306.13649, its beta). Divided by alpha it tends to
    KL(p || q) as alpha -> 0, divided by 1 - alpha to KL(q || p) as alpha -> 1; it is at most log 2.
    """
    log_m = _mixture(log_q, log_p, alpha)
    return alpha * _kl(log_p, log_m) + (1 - alpha) * _kl(log_q, log_m)


def _mixture(log_q: Tensor, log_p: Tensor, alpha: float) -> Tensor:
    return torch.logaddexp(log_p + log(alpha), log_q + log(1 - alpha))


DIVERGENCES: dict[str, Divergence] = {
    "forward": Divergence(_forward, guide=lambda _log_q, log_p, _alpha: log_p),
    "reverse": Divergence(_reverse, guide=lambda log_q, _log_p, _alpha: log_q),
    "js": Divergence(_js, guide=_mixture),
}


def divergence(
    student_logits_TV: Tensor, teacher_logits_TV: Tensor, objective: Objective | str, ids_T: Tensor | None = None
) -> Tensor:
    """The objective at every token: [T, V], [T, V] -> [T] in nats. Only "sft" and "sampled" need `ids_T`.

    "topk" compares k tokens and the rest as one: a lower bound of the full divergence, equal to it at k = V.
    """
    objective = Objective(objective) if isinstance(objective, str) else objective
    return _loss(_log_softmax(student_logits_TV), _log_softmax(teacher_logits_TV).detach(), objective, ids_T)


def _loss(log_q: Tensor, log_p: Tensor | None, objective: Objective, ids_T: Tensor | None) -> Tensor:
    if objective.kind == "sft":
        assert ids_T is not None, "cross-entropy needs the action tokens"
        return -_at(log_q, ids_T)
    assert log_p is not None, "a divergence needs a teacher"
    if objective.kind == "policy_gradient":
        assert ids_T is not None, "a policy gradient needs the sampled tokens"
        return clipped_ratio(_at(log_q, ids_T), _at(log_p, ids_T), objective)
    if objective.support == "sampled":
        assert ids_T is not None, "the sampled estimator needs the sampled tokens"
        return sampled_reverse_kl(_at(log_q, ids_T), _at(log_p, ids_T))
    chosen = DIVERGENCES[objective.kind]
    if objective.support == "topk" and objective.top_k < log_q.shape[-1]:
        top_TK = chosen.guide(log_q.detach(), log_p, objective.alpha).topk(objective.top_k, dim=-1).indices
        log_q, log_p = _with_rest(log_q, top_TK), _with_rest(log_p, top_TK)
    return chosen.value(log_q, log_p, objective.alpha)


def sampled_reverse_kl(log_q_T: Tensor, log_p_T: Tensor) -> Tensor:
    """log(q / p) at tokens sampled from the student; its gradient is log(q / p) grad log q: [T], [T] -> [T].

    Over tokens drawn from q both are unbiased, for KL(q || p) and for its gradient. (The gradient of the value
    itself would be grad log q, zero on average: arXiv 2506.09477.) Its variance at one token is E[log(q/p)^2] - KL^2,
    where the full sum has none. Tokens that an earlier student sampled make it biased; `refresh` samples them anew.
    """
    ratio_T = (log_q_T - log_p_T).detach()
    return ratio_T + ratio_T * (log_q_T - log_q_T.detach())


def clipped_ratio(log_q_T: Tensor, log_p_T: Tensor, objective: Objective) -> Tensor:
    """Minus the ratio q / p at sampled tokens, p the policy that played: [T], [T] -> [T].

    Times an advantage A it is -min(r A, clip(r) A) of PPO (arXiv 1707.06347), so a token has no gradient any more once
    its ratio went beyond 1 + clip where A is above 0, or below 1 - clip where it is below 0. This bound is what makes a
    negative weight safe.
    """
    ratio_T = (log_q_T - log_p_T).exp()
    return -(ratio_T.clamp(min=1 - objective.clip) if objective.failed else ratio_T.clamp(max=1 + objective.clip))


def chunked_loss(  # noqa: PLR0913 - two references, each of hidden states and head
    hidden_TD: Tensor,
    head: Head,
    ids_T: Tensor,
    objective: Objective | str,
    *,
    teacher_TD: Tensor | None = None,
    teacher_head: Head | None = None,
    anchor: Anchor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Loss at every action token from hidden states: [T, D], [T], teacher [T, D'] -> [T] in nats.

    `teacher_head` None means that the teacher uses the student's head. Logits are computed for `chunk` tokens at a time
    (None: `tokens_at_once`) and never kept: with a frozen head the gradient of the hidden states is computed along with
    the loss, with a trained one the backward pass computes the logits again.
    """
    objective = Objective(objective) if isinstance(objective, str) else objective

    def loss_of(rows_TD: Tensor, part: slice) -> Tensor:
        log_q = _log_softmax(head(rows_TD))  # no variable holds the logits, so that they are freed at once
        log_p = None if teacher_TD is None else _log_p(teacher_head or head, teacher_TD[part])
        loss = _loss(log_q, log_p, objective, ids_T[part])
        if anchor is not None:
            loss = loss + anchor.weight * _kl(log_q, _log_p(anchor.head, anchor.hidden_TD[part]))
        return loss

    size = chunk or tokens_at_once(head, hidden_TD.device)
    parts = [slice(start, start + size) for start in range(0, len(ids_T), size)]
    if len(parts) <= 1:  # one chunk is enough: plain autograd computes nothing twice
        return loss_of(hidden_TD, slice(None))
    if isinstance(head, nn.Module) and not any(weight.requires_grad for weight in head.parameters()):
        losses_T: Tensor = _RowLoss.apply(hidden_TD, loss_of, parts)  # type: ignore[no-untyped-call]
        return losses_T
    again = [checkpoint(loss_of, hidden_TD[p], p, use_reentrant=False, preserve_rng_state=False) for p in parts]
    return torch.cat(again)


def tokens_at_once(head: Head, device: torch.device) -> int:
    """How many tokens have `LOGITS` logits; a head that is no module counts as 2**16 logits a token."""
    weights = list(head.parameters()) if isinstance(head, nn.Module) else []
    vocabulary = max((len(weight) for weight in weights), default=2**16)
    return max(FEWEST, LOGITS.get(device.type, LOGITS["cuda"]) // vocabulary)


@torch.no_grad()
def _log_p(head: Head, rows_TD: Tensor) -> Tensor:
    """Log-probabilities of a teacher or an anchor: [T, D] -> [T, V]."""
    return _log_softmax(head(rows_TD))


class _RowLoss(torch.autograd.Function):
    """Computes loss and gradient together, chunk by chunk. This needs the loss of row t to depend on row t alone."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, loss_of: Callable[[Tensor, slice], Tensor], parts: list[slice]) -> Tensor:
        """[T, D] -> [T]; keeps a gradient [T, D] if the input needs one."""
        if not ctx.needs_input_grad[0]:
            return torch.cat([loss_of(hidden_TD[part], part) for part in parts])
        losses, gradient_TD = [], torch.empty_like(hidden_TD)
        for part in parts:
            with torch.enable_grad():
                rows_TD = hidden_TD[part].detach().requires_grad_()
                loss_T = loss_of(rows_TD, part)
                (gradient_TD[part],) = torch.autograd.grad(loss_T.sum(), rows_TD)
            losses.append(loss_T.detach())
        ctx.save_for_backward(gradient_TD)
        return torch.cat(losses)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream_T: Tensor) -> tuple[Tensor, None, None]:
        """[T] -> [T, D]."""
        (gradient_TD,) = ctx.saved_tensors
        return upstream_T.unsqueeze(-1).to(gradient_TD.dtype) * gradient_TD, None, None


def _log_softmax(logits: Tensor) -> Tensor:
    return functional.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=-1)


def _kl(log_a: Tensor, log_b: Tensor) -> Tensor:
    return (log_a.exp() * (log_a - log_b)).sum(-1)


def _at(log_TV: Tensor, ids_T: Tensor) -> Tensor:
    return log_TV.gather(-1, ids_T.unsqueeze(-1)).squeeze(-1)


def _with_rest(log_TV: Tensor, top_TK: Tensor) -> Tensor:
    """Log-probabilities of the chosen tokens and, last, of all others together: [T, V], [T, K] -> [T, K + 1]."""
    rest = log_TV.scatter(-1, top_TK, float("-inf")).logsumexp(-1, keepdim=True)
    return torch.cat([log_TV.gather(-1, top_TK), rest], dim=-1)
