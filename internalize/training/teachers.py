"""The teacher's side of a training: from examples to items with the teacher's hidden states, and the held-out share.

A frozen teacher (the weights at the start of the iteration, or another model) scores every example once, before
training. Its hidden states [A action tokens, D hidden size] are kept, and its head makes logits from them chunk by
chunk. A moving teacher ('live', 'ema') scores at every step, so its items carry its input instead. Held-out items are
always compared with the teacher at the start, before training and after.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.errors import InternalizeError, UserError
from internalize.inference.loading import load_policy
from internalize.inference.self_check import in_float32, ordinary_ids
from internalize.interfaces import Scorer
from internalize.records import DistillExample, content_hash
from internalize.records.packed import Packed

from .examples import FEWEST_TO_SPLIT, draw_held_out
from .head import head
from .losses import Head, chunked_loss
from .scoring import PACKED, pack, pack_clean, teacher_states
from .selection import SCORERS, select_scorer
from .weights import State, head_with, snapshot, swapped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SANE_MARGIN = 0.25  # nats below a uniform guess; random weights are at or above the guess, a working policy far below
SANE_SAMPLE = 8  # examples on which a moving teacher is checked


@dataclass(frozen=True)
class TrainItem:
    """The trainer's input for one example. Without teacher states and teacher input the loss is cross-entropy.

    `with_experience` has the same actions with the experience left in the student's prompt; it is trained beside the
    item and counts in no denominator.
    """

    packed: Packed  # the student's input
    teacher_AD: Tensor | None = None  # hidden states of a teacher that does not change
    weight: float = 1.0
    teacher_input: Packed | None = None  # input of a teacher that scores at every step
    anchor_AD: Tensor | None = None  # the starter's hidden states, for `kl_anchor`
    with_experience: TrainItem | None = None


@dataclass(frozen=True)
class References:
    """Other weights with which a training compares the student, the student's tokenizer, and the scorer."""

    teacher_weights: State | None = None  # of a frozen teacher; None: the model's current weights
    anchor_weights: State | None = None  # the starter's, for `kl_anchor`
    tokenizer: PreTrainedTokenizerBase | None = None  # the student's; a teacher model must have the same
    scorer: Scorer = PACKED


@dataclass(frozen=True)
class TrainingSet:
    """Items to train on and held-out items, and the heads that make logits from the references' hidden states."""

    items: Sequence[TrainItem]
    held_out: Sequence[TrainItem] = ()
    teacher_head: Head | None = None  # None: the student's head, which is then frozen
    anchor_head: Head | None = None  # None: likewise
    teacher_nll: float | None = None  # mean -log p of the action tokens under the teacher, nats
    digest: str = ""  # hash of the examples
    scorer: Scorer = PACKED  # the policy's


def build_training_set(
    model: nn.Module,
    examples: Sequence[DistillExample],
    config: DistillConfig,
    references: References,
    seed: int,
    part: Round | None = None,
) -> TrainingSet:
    """Every example as an item, with the teacher's hidden states unless the teacher moves during training.

    `part` is one round of several, whose held-out examples are chosen already. Raises InternalizeError if the teacher's
    NLL is no better than a uniform guess, UserError for a teacher with another tokenizer.
    """
    if part:
        held = frozenset(range(len(examples), len(examples) + len(part.held)))
        examples = [*examples, *part.held]
    else:
        held = held_out(len(examples), config.held_out, seed)
    clean = [pack_clean(example.token_ids, example.spans) for example in examples]
    anchors, anchor_head = _anchors(model, clean, config, references)
    states: dict[int, Tensor] = {}
    teacher_head, nll = None, None
    moving = config.asks_teacher and config.teacher.kind in {"live", "ema"}
    if config.signed:
        played = replace(references, teacher_weights=None)  # the ratio is to the weights that played: the model's own
        found, teacher_head, nll = _score(model, clean, config, played)
        states = dict(enumerate(found))
    if config.asks_teacher:
        sample = range(min(SANE_SAMPLE, len(examples)) if moving else len(examples))
        asked = sorted({*held, *sample})
        found, teacher_head, nll = _score(model, [pack(examples[place]) for place in asked], config, references)
        states = dict(zip(asked, found, strict=True))
    items = []
    for place, example in enumerate(examples):
        item = TrainItem(clean[place], states.get(place), example.weight, None, anchors[place])
        if moving and place not in held:
            item = replace(item, teacher_AD=None, teacher_input=pack(example))
        items.append(replace(item, with_experience=_with_experience(item, example, config)))
    return TrainingSet(
        items=[item for place, item in enumerate(items) if place not in held],
        held_out=[item for place, item in enumerate(items) if place in held],
        teacher_head=teacher_head,
        anchor_head=anchor_head,
        teacher_nll=nll,
        digest=content_hash([example.model_dump(mode="json") for example in examples]),
        scorer=references.scorer,
    )


def _anchors(
    model: nn.Module, clean: Sequence[Packed], config: DistillConfig, references: References
) -> tuple[Sequence[Tensor | None], Head | None]:
    """The starter's hidden states [A, D] on the clean inputs, and its head if that is not the student's."""
    if not config.kl_anchor:
        return [None] * len(clean), None
    with swapped(model, references.anchor_weights):
        return _on_cpu(teacher_states(model, clean, references.scorer)), head_snapshot(model)


def _with_experience(item: TrainItem, example: DistillExample, config: DistillConfig) -> TrainItem | None:
    """The item for `distill.in_context`; None if that is off or the teacher is shown no experience."""
    if config.in_context == "off" or not (example.teacher_prompt or any(span.branch for span in example.spans)):
        return None
    copied = replace(item, packed=pack(example), anchor_AD=None)
    return replace(copied, teacher_AD=None, teacher_input=None) if config.in_context == "learn" else copied


def held_out(count: int, share: float, seed: int) -> frozenset[int]:
    """The numbers of the held-out examples; none if `count` is below `FEWEST_TO_SPLIT`."""
    return draw_held_out(count, share, seed) if count >= FEWEST_TO_SPLIT else frozenset()


def require_same_tokens(own: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, source: str) -> None:
    """Raises UserError if `other` gives any token another id than `own` does."""
    mine, theirs = own.get_vocab(), other.get_vocab()
    if mine == theirs:
        return
    token = next(token for token in sorted(mine.keys() | theirs.keys()) if mine.get(token) != theirs.get(token))
    raise UserError(
        f"distill.teacher.source = {source!r}: its tokenizer is another than the policy's (token {token!r} has id "
        f"{theirs.get(token)} there and {mine.get(token)} here), so their distributions cannot be compared"
    )


def head_snapshot(model: nn.Module) -> Head | None:
    """A copy of the current head if training would change it; None if it is frozen and can be shared."""
    return head_with(model, snapshot(model))


def _score(
    model: nn.Module, packs: Sequence[Packed], config: DistillConfig, references: References
) -> tuple[list[Tensor], Head | None, float]:
    """The teacher's hidden states [A, D] on each of `packs`, its head if it is not the student's, its mean NLL."""
    if config.teacher.kind == "model":
        longest = max(int(packed.position_ids.max()) + 1 for packed in packs)
        other, scorer = _load(model, config.teacher.source, references.tokenizer, longest)
        states = _on_cpu(teacher_states(other, packs, scorer))
        size, output = _vocabulary(head(model)), head(other)
        return states, lambda hidden: output(hidden)[..., :size], _sensible_nll(other, packs, states)
    with swapped(model, references.teacher_weights):
        states = _on_cpu(teacher_states(model, packs, references.scorer))
        return states, head_snapshot(model), _sensible_nll(model, packs, states)


def _on_cpu(states: Iterable[Tensor]) -> list[Tensor]:
    return [hidden_AD.cpu() for hidden_AD in states]


def _load(
    model: nn.Module, source: str, tokenizer: PreTrainedTokenizerBase | None, longest: int
) -> tuple[nn.Module, Scorer]:
    """The model of another teacher, and its scorer for contexts of up to `longest` tokens."""
    weight = next(model.parameters())
    other: nn.Module
    other, its_tokenizer = load_policy(
        source, device=str(weight.device), dtype=str(weight.dtype).removeprefix("torch.")
    )
    if tokenizer is not None:
        require_same_tokens(tokenizer, its_tokenizer, source)
    if _vocabulary(head(other)) < _vocabulary(head(model)):
        raise UserError(f"distill.teacher.source = {source!r}: its head has fewer tokens than the policy's")
    other.requires_grad_(False)  # noqa: FBT003 - torch's signature
    with in_float32(other):
        name, _ = select_scorer(other, ordinary_ids(other, its_tokenizer), longest)
    return other, SCORERS[name]


def _vocabulary(output: nn.Module) -> int:
    return int(next(output.parameters()).shape[0])


@torch.no_grad()
def _sensible_nll(model: nn.Module, packs: Sequence[Packed], states: Sequence[Tensor]) -> float:
    """The teacher's mean -log p of the action tokens. Raises if a uniform guess is as good (missing weights)."""
    output = head(model)
    device = next(output.parameters()).device
    total = 0.0
    for packed, hidden_AD in zip(packs, states, strict=True):
        total += float(chunked_loss(hidden_AD.to(device), output, packed.targets.to(device), "sft").sum())
    nll = total / sum(len(packed.targets) for packed in packs)
    uniform = math.log(_vocabulary(output))
    if not nll < uniform - SANE_MARGIN:  # written so that NaN fails
        raise InternalizeError(
            f"the teacher's NLL on its own action tokens is {nll:.3f} nats, a uniform guess has {uniform:.3f}: "
            "its weights are missing or belong to another model"
        )
    return nll
