"""Measures how far a policy is from the starter: action entropy, KL to the starter, and NLL of plain text.

All three are exact over the vocabulary, in nats per token. Entropy and KL(policy || starter) are means over the action
tokens of episodes the policy played itself, without experience; `held_out_nll` is the mean -log p of a fixed text of
prose, code and sums that no environment contains (held_out.txt). Measuring changes neither gradients nor weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from internalize.interfaces import Renderer, Scorer
from internalize.records import Drift, Trajectory
from internalize.records.packed import Packed

from .examples import build_example
from .head import head
from .losses import chunked_loss, tokens_at_once
from .scoring import PACKED, pack_branches, pack_clean, teacher_hidden
from .weights import State, head_with, swapped

TEXT = Path(__file__).parent / "held_out.txt"


def drift(
    model: nn.Module,
    renderer: Renderer,
    episodes: Sequence[Trajectory],
    starter: State | None,
    iteration: int,
    checkpoint: str,
    scorer: Scorer = PACKED,
) -> Drift:
    """Measure `model` on `episodes`; `starter` holds the starter's trained weights (None: the model is the starter)."""
    packs = [pack_clean(e.token_ids, e.spans) for t in episodes if (e := build_example(t, renderer)) is not None]
    entropies, divergences = [torch.zeros(0)], [torch.zeros(0)]
    for packed in packs:
        hidden_AD = teacher_hidden(model, packed, scorer)
        entropies.append(_entropy(hidden_AD, model))
        divergences.append(_kl(model, packed, hidden_AD, starter, scorer))
    entropy_A, kl_A = torch.cat(entropies), torch.cat(divergences)
    return Drift(
        iteration=iteration,
        checkpoint=checkpoint,
        tokens=len(kl_A),
        entropy=float(entropy_A.mean()) if len(entropy_A) else None,
        kl_to_base=float(kl_A.mean()) if len(kl_A) else None,
        held_out_nll=held_out_nll(model, renderer, scorer),
    )


@torch.no_grad()
def held_out_nll(model: nn.Module, renderer: Renderer, scorer: Scorer = PACKED) -> float:
    """Mean -log p of the held-out text, nats per token; each paragraph alone, without its first token."""
    losses = []
    for paragraph in TEXT.read_text(encoding="utf-8").strip().split("\n\n"):
        ids = tuple(renderer.tokenizer.encode(paragraph, add_special_tokens=False))
        packed = pack_branches(ids, [(1, (), ids[1:])])
        hidden_AD = teacher_hidden(model, packed, scorer)
        losses.append(chunked_loss(hidden_AD, head(model), packed.targets.to(hidden_AD.device), "sft").cpu())
    return float(torch.cat(losses).mean())


@torch.no_grad()
def _entropy(hidden_AD: Tensor, model: nn.Module) -> Tensor:
    """Entropy of the next-token distribution at every action token: [A]."""
    output, entropies = head(model), [torch.zeros(0)]
    for part in torch.split(hidden_AD, tokens_at_once(output, hidden_AD.device)):
        log_p = functional.log_softmax(output(part).float(), dim=-1)
        entropies.append(-(log_p.exp() * log_p).sum(-1).cpu())
    return torch.cat(entropies)


@torch.no_grad()
def _kl(model: nn.Module, packed: Packed, hidden_AD: Tensor, starter: State | None, scorer: Scorer) -> Tensor:
    """KL(policy || starter) at every action token: [A]."""
    if starter is None:
        return torch.zeros(len(packed.targets))
    with swapped(model, starter):
        base_AD = teacher_hidden(model, packed, scorer)
    targets = packed.targets.to(hidden_AD.device)
    base_head = head_with(model, starter)
    return chunked_loss(hidden_AD, head(model), targets, "reverse", teacher_TD=base_AD, teacher_head=base_head).cpu()
