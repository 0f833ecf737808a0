"""Per-token losses between a student's and a teacher's next-token distributions: pure tensor functions.

A new objective is one short function on log-probabilities and one line in `DIVERGENCES`. `support` says over which
part of the vocabulary it is taken. Left out: where positions come from (`scoring`), weights and means (the caller's).
What must not change: the directions, one loss a token, arithmetic in float32 or better, no gradient into the
teacher, and no [tokens, vocabulary] tensor larger than one chunk.

Dimensions: `_T` action tokens, `_V` vocabulary, `_D` hidden size, `_K` compared entries (V, or top-k and a rest).
p is the teacher's distribution, q the student's.
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

# Logits that live at once, in about eight copies: 21 tokens of a vocabulary of 49,152 on a CPU, which more would make
# little faster (7 % with twice as many, in a model of four layers); a GPU wants larger pieces.
LOGITS = {"cpu": 2**20, "cuda": 2**25}
FEWEST = 16  # tokens at once, whatever the vocabulary


class Divergence(NamedTuple):
    """One objective: its value, and the distribution whose likeliest tokens `support = "topk"` keeps."""

    value: Compare  # [T, K], [T, K] -> [T] in nats
    guide: Compare  # [T, V], [T, V] -> [T, V]


@dataclass(frozen=True)
class Objective:
    """What is compared and how. `kind` "sft" is cross-entropy; else a key of `DIVERGENCES`."""

    kind: str
    alpha: float = 0.5  # of "js"
    support: str = "full"  # "full", "topk" or "sampled"
    top_k: int = 64


class Anchor(NamedTuple):
    """Weight times KL(student || anchor) is added at every token; hidden states [T, D] and head of the anchor."""

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
    """The objective at every token: [T, V], [T, V] -> [T] in nats. `ids_T` are needed by support "sampled" alone.

    "topk" compares k tokens and the rest as one: a lower bound of the full divergence, equal to it at k = V.
    """
    objective = Objective(objective) if isinstance(objective, str) else objective
    return _compare(_log_softmax(student_logits_TV), _log_softmax(teacher_logits_TV).detach(), objective, ids_T)


def _compare(log_q: Tensor, log_p: Tensor, objective: Objective, ids_T: Tensor | None) -> Tensor:
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
    itself would be grad log q, zero on average: arXiv 2506.09477.) The price is variance: one token's value has
    E[log(q/p)^2] - KL^2, which does not shrink with the vocabulary and is zero only at p = q, where support
    "full" has none at all. Tokens that an earlier student sampled make it biased: see `refresh`.
    """
    ratio_T = (log_q_T - log_p_T).detach()
    return ratio_T + ratio_T * (log_q_T - log_q_T.detach())


def cross_entropy(student_logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    """-log q(id) at every token: [T, V], [T] -> [T] in nats."""
    return -_at(_log_softmax(student_logits_TV), ids_T)


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

    `objective` "sft" needs no teacher. `teacher_head` None means that the head is frozen and shared. Logits are made
    `chunk` tokens at a time (None: `tokens_at_once`) and never kept: with a frozen head the gradient of the hidden
    states is worked out along with the loss; with a trained one the logits are made again in the backward pass.
    """
    objective = Objective(objective) if isinstance(objective, str) else objective

    def loss_of(rows_TD: Tensor, part: slice) -> Tensor:
        log_q = _log_softmax(head(rows_TD))  # no name for the logits, so that they do not outlive their use
        if objective.kind == "sft":
            loss = -_at(log_q, ids_T[part])
        else:
            assert teacher_TD is not None, "a divergence needs the teacher's hidden states"
            loss = _compare(log_q, _reference(teacher_head or head, teacher_TD[part]), objective, ids_T[part])
        if anchor is not None:
            held = _reference(anchor.head, anchor.hidden_TD[part])
            loss = loss + anchor.weight * _compare(log_q, held, Objective("reverse"), None)
        return loss

    size = chunk or tokens_at_once(head, hidden_TD.device)
    parts = [slice(start, start + size) for start in range(0, len(ids_T), size)]
    if len(parts) <= 1:  # a single chunk is within the bound: plain autograd, nothing twice
        return loss_of(hidden_TD, slice(None))
    if isinstance(head, nn.Module) and not any(weight.requires_grad for weight in head.parameters()):
        losses_T: Tensor = _RowLoss.apply(hidden_TD, loss_of, parts)  # type: ignore[no-untyped-call]
        return losses_T
    again = [checkpoint(loss_of, hidden_TD[p], p, use_reentrant=False, preserve_rng_state=False) for p in parts]
    return torch.cat(again)


def tokens_at_once(head: Head, device: torch.device) -> int:
    """Tokens whose logits are `LOGITS`; a head without weights of its own is taken for one of 2**16 tokens."""
    weights = list(head.parameters()) if isinstance(head, nn.Module) else []
    vocabulary = max((len(weight) for weight in weights), default=2**16)
    return max(FEWEST, LOGITS.get(device.type, LOGITS["cuda"]) // vocabulary)


@torch.no_grad()
def _reference(head: Head, rows_TD: Tensor) -> Tensor:
    """Log-probabilities of a teacher or an anchor: [T, D] -> [T, V]."""
    return _log_softmax(head(rows_TD))


class _RowLoss(torch.autograd.Function):
    """Loss and its gradient in one go, chunk by chunk: the loss of row t depends on hidden row t alone."""

    @staticmethod
    def forward(ctx: Any, hidden_TD: Tensor, loss_of: Callable[[Tensor, slice], Tensor], parts: list[slice]) -> Tensor:
        """[T, D] -> [T]; keeps a gradient [T, D] if one is wanted."""
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
