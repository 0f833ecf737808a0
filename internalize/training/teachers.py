"""From examples to what the trainer runs: the student's side, the teacher's answers to it, the held-out share.

A frozen teacher (the weights at the start of the iteration, or another model) answers once, before training, and
is kept as hidden states [action tokens, hidden size]; its logits are made again from its head chunk by chunk. A
moving one ('live', 'ema') answers at every step, so its items carry the packed context instead. Held-out items are
always measured against the teacher of the start, so that before and after can be compared. Left out: teachers with
other tokens than the student's. What must not change: eval mode and no gradients for every teacher; a teacher that
finds its own action tokens hopelessly unlikely is refused.
"""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.errors import InternalizeError, UserError
from internalize.inference.loading import load_policy
from internalize.inference.self_check import check_scores, in_one_sentence, ordinary_ids, require_reach
from internalize.records import DistillExample, content_hash

from .losses import Head, chunked_loss
from .scoring import Packed, example_logits, head, pack, pack_clean, require_plain_head, teacher_answers
from .weights import State, swapped, trained

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SANE_MARGIN = 0.25  # nats below a uniform guess; fresh random weights are at or above it, a working policy far below
SANE_SAMPLE = 8  # examples that a moving teacher is tried on
FEWEST_TO_SPLIT = 20  # with fewer examples nothing is held out
FEWEST_HELD = 2
MOVING = frozenset({"live", "ema"})


@dataclass(frozen=True)
class TrainItem:
    """What the student runs, and the teacher's hidden states [A, D] at the same action tokens (None: sft).

    `hinted` is the teacher's side for one that answers anew at every step; `anchor` the starter's hidden states.
    `shown` is the same item with the experience left in the prompt, trained beside it and not counted.
    """

    packed: Packed
    teacher: Tensor | None = None
    weight: float = 1.0
    hinted: Packed | None = None
    anchor: Tensor | None = None
    shown: TrainItem | None = None


@dataclass(frozen=True)
class Given:
    """What a distillation needs besides model, examples and settings."""

    start: State | None = None  # weights of a frozen teacher; None: those the model has now
    anchor: State | None = None  # the starter's weights, for `kl_anchor`
    tokenizer: PreTrainedTokenizerBase | None = None  # the student's, for teacher = "model"
    part: Round | None = None  # None: the whole training


@dataclass(frozen=True)
class Lessons:
    """Items to train on and to measure on, the heads that go with their hidden states, the teacher's NLL."""

    items: Sequence[TrainItem]
    held: Sequence[TrainItem] = ()
    teacher_head: Head | None = None  # None: the student's, which is then frozen and shared
    anchor_head: Head | None = None
    teacher_nll: float | None = None
    source: str = ""  # hash of the examples they were made of


def prepare(
    model: nn.Module, examples: Sequence[DistillExample], config: DistillConfig, given: Given, seed: int
) -> Lessons:
    """Every example as an item, with the teacher's answer to it where that does not change during training.

    Raises InternalizeError for a teacher without a mind of its own, UserError for one with other tokens.
    """
    if given.part:
        places = frozenset(range(len(examples), len(examples) + len(given.part.held)))
        examples = [*examples, *given.part.held]
    else:
        places = held_out(len(examples), config.held_out, seed)
    source = content_hash([example.model_dump(mode="json") for example in examples])
    clean = [pack_clean(example.token_ids, example.spans) for example in examples]
    anchor, anchor_head = _anchor(model, clean, config, given)
    if not config.asks_teacher:
        items = [TrainItem(p, None, e.weight, None, a) for p, e, a in zip(clean, examples, anchor, strict=True)]
        return Lessons(*_split(_with_shown(items, examples, config), places), anchor_head=anchor_head, source=source)
    moving = config.teacher.kind in MOVING
    asked = sorted({*places, *range(min(SANE_SAMPLE, len(examples)))}) if moving else range(len(examples))
    answers, teacher_head, nll = _answers(model, [examples[i] for i in asked], [clean[i] for i in asked], config, given)
    known = dict(zip(asked, answers, strict=True))
    items = [
        TrainItem(
            packed=packed,
            teacher=known[i] if not moving or i in places else None,
            weight=example.weight,
            hinted=pack(example) if moving and i not in places else None,
            anchor=anchor[i],
        )
        for i, (packed, example) in enumerate(zip(clean, examples, strict=True))
    ]
    return Lessons(*_split(_with_shown(items, examples, config), places), teacher_head, anchor_head, nll, source)


def _with_shown(
    items: Sequence[TrainItem], examples: Sequence[DistillExample], config: DistillConfig
) -> list[TrainItem]:
    """Every item with its like in context, where experience was shown; without a teacher it takes cross-entropy."""
    if config.in_context == "off":
        return list(items)
    found = []
    for item, example in zip(items, examples, strict=True):
        was_shown = example.teacher_prompt or any(span.branch for span in example.spans)
        like = replace(item, packed=pack(example), anchor=None)
        if config.in_context == "learn":
            like = replace(like, teacher=None, hinted=None)
        found.append(replace(item, shown=like) if was_shown else item)
    return found


def held_out(count: int, share: float, seed: int) -> frozenset[int]:
    """Which of `count` examples are held out; none of fewer than `FEWEST_TO_SPLIT`."""
    return draw_held_out(count, share, seed) if count >= FEWEST_TO_SPLIT else frozenset()


def draw_held_out(count: int, share: float, seed: int) -> frozenset[int]:
    """The share of `count` places, at least `FEWEST_HELD` of them; none for a share of 0."""
    return frozenset(random.Random(seed).sample(range(count), max(FEWEST_HELD, round(share * count)) if share else 0))


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


def _split(items: Sequence[TrainItem], places: frozenset[int]) -> tuple[list[TrainItem], list[TrainItem]]:
    return [t for i, t in enumerate(items) if i not in places], [t for i, t in enumerate(items) if i in places]


def _anchor(
    model: nn.Module, clean: Sequence[Packed], config: DistillConfig, given: Given
) -> tuple[Sequence[Tensor | None], Head | None]:
    if not config.kl_anchor:
        return [None] * len(clean), None
    with swapped(model, given.anchor):
        return teacher_answers(model, clean), own_head(model)


def _answers(
    model: nn.Module,
    examples: Sequence[DistillExample],
    clean: Sequence[Packed],
    config: DistillConfig,
    given: Given,
) -> tuple[list[Tensor], Head | None, float]:
    """The teacher's hidden states, its head if it is not the student's, its NLL on the action tokens."""
    if config.teacher.kind == "model":
        other = _load(model, config.teacher.source, given)
        packs = [pack(example) for example in examples]
        require_reach(other, max(int(packed.position_ids.max()) + 1 for packed in packs))
        answers = teacher_answers(other, packs)
        size = _vocabulary(head(model))
        output = head(other)
        return answers, lambda hidden: output(hidden)[..., :size], _sane_nll(other, clean, answers)
    with swapped(model, given.start):
        answers = teacher_answers(model, [pack(example) for example in examples])
        return answers, own_head(model), _sane_nll(model, clean, answers)


def own_head(model: nn.Module) -> Head | None:
    """A copy of the head as it is now if training would move it; None if it is frozen and can be shared."""
    weights = {id(weight) for weight in trained(model).values()}
    moves = any(id(weight) in weights for weight in head(model).parameters())
    return copy.deepcopy(head(model)).requires_grad_(False) if moves else None  # noqa: FBT003


def _load(model: nn.Module, source: str, given: Given) -> nn.Module:
    weight = next(model.parameters())
    other: nn.Module
    other, tokenizer = load_policy(source, device=str(weight.device), dtype=str(weight.dtype).removeprefix("torch."))
    if given.tokenizer is not None:
        require_same_tokens(given.tokenizer, tokenizer, source)
    if _vocabulary(head(other)) < _vocabulary(head(model)):
        raise UserError(f"distill.teacher.source = {source!r}: its head has fewer tokens than the policy's")
    other.requires_grad_(False)  # noqa: FBT003 - torch's signature
    with in_one_sentence(other, "scoring"):
        require_plain_head(other)
    check_scores(other, example_logits, ordinary_ids(other, tokenizer))
    return other


def _vocabulary(output: nn.Module) -> int:
    return int(next(output.parameters()).shape[0])


@torch.no_grad()
def _sane_nll(model: nn.Module, clean: Sequence[Packed], teacher: Sequence[Tensor]) -> float:
    """Mean -log p of the action tokens under the teacher. Missing weights show as a uniform teacher."""
    output = head(model)
    device = next(output.parameters()).device
    total = 0.0
    for packed, hidden_AD in zip(clean, teacher, strict=True):
        total += float(chunked_loss(hidden_AD.to(device), output, packed.targets.to(device), "sft").sum())
    nll = total / sum(len(packed.targets) for packed in clean)
    uniform = math.log(_vocabulary(output))
    if not nll < uniform - SANE_MARGIN:  # written so that NaN fails
        raise InternalizeError(
            f"the teacher's NLL on its own action tokens is {nll:.3f} nats, a uniform guess has {uniform:.3f}: "
            "its weights are missing or belong to another model"
        )
    return nll
