"""Training on packed trajectories with transformers' `Trainer`: no loop of our own.

`distill` is the stage: one teacher pass over every example with the weights of this moment, then
the student's epochs. `fit` is the part below it, for recipes that bring their own targets. The
teacher is kept as hidden states ([action tokens, hidden size], small); its logits are made again
from the head chunk by chunk, so no second set of weights lives, except a copy of the head when the
head itself is trained. Left out: moving (live or averaged) teachers, resuming inside a stage (it is
run again from its inputs), padding (one trajectory a forward pass, accumulated to a batch).

What must not change: the teacher is frozen at the start of the call; the loss of an optimizer step
is sum(weight * token loss) / number of action tokens in that step, so long trajectories count by
their tokens and the weights do not change the denominator; the same seed gives the same weights.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from internalize.config import DistillConfig
from internalize.errors import InternalizeError
from internalize.records import DistillExample, Record

from .losses import Head, chunked_loss
from .scoring import Packed, head, hidden_states, pack, pack_clean, teacher_hidden

SANE_MARGIN = 0.25  # nats below a uniform guess; fresh random weights are at or above it, a working policy far below

Progress = Callable[[int, int, float], None]  # optimizer step, optimizer steps in all, its loss


@dataclass(frozen=True)
class TrainItem:
    """What the student runs, and the teacher's hidden states [A, D] at the same action tokens (None: sft)."""

    packed: Packed
    teacher: Tensor | None = None
    weight: float = 1.0


class TrainSummary(Record):
    """What one call did. Losses in nats per action token; None when there was nothing to train on.

    `divergence_before` and `_after` are unweighted, over the trajectories of the first optimizer
    step: before any update and after the last one.
    """

    steps: int
    accepted: int
    action_tokens: int
    first_loss: float | None = None
    last_loss: float | None = None
    divergence_before: float | None = None
    divergence_after: float | None = None
    teacher_nll: float | None = None
    seconds: float = 0.0


def new_adapter(model: nn.Module, r: int, seed: int) -> PeftModel:
    """A fresh LoRA adapter 'default' on every linear layer but the head: alpha 2r, no dropout, no effect yet."""
    config = LoraConfig(
        r=r, lora_alpha=2 * r, lora_dropout=0.0, bias="none", target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def distill(
    model: nn.Module,
    examples: Sequence[DistillExample],
    config: DistillConfig,
    *,
    seed: int,
    output_dir: Path,
    progress: Progress | None = None,
) -> TrainSummary:
    """Move the student (clean context) towards the teacher (with experience), in place.

    `model` is a PEFT model, whose adapter 'default' is trained, or a plain one, trained whole.
    Raises InternalizeError when the teacher finds its own action tokens hopelessly unlikely.
    """
    started = time.monotonic()
    examples = [example for example in examples if any(span.end > span.start for span in example.spans)]
    clean = [pack_clean(example.token_ids, example.spans) for example in examples]
    if config.divergence == "sft" or not examples:
        items = [TrainItem(packed, None, example.weight) for packed, example in zip(clean, examples, strict=True)]
        return fit(model, items, config, seed=seed, output_dir=output_dir, progress=progress)
    teacher = [teacher_hidden(model, pack(example)).cpu() for example in examples]
    nll = _sane_nll(model, clean, teacher)
    weights = [example.weight for example in examples]
    items = [TrainItem(*parts) for parts in zip(clean, teacher, weights, strict=True)]
    summary = fit(model, items, config, seed=seed, output_dir=output_dir, progress=progress)
    return summary.model_copy(update={"teacher_nll": nll, "seconds": time.monotonic() - started})


def fit(
    model: nn.Module,
    items: Sequence[TrainItem],
    config: DistillConfig,
    *,
    seed: int,
    output_dir: Path,
    progress: Progress | None = None,
) -> TrainSummary:
    """Train on `items` in place: AdamW, linear decay to 0, seeded order. Seeds the global generators.

    Items with `teacher` None take cross-entropy. The model is left in eval mode. Raises
    InternalizeError as soon as the loss is not finite; the weights are then lost.
    """
    tokens = sum(len(item.packed.targets) for item in items)
    if not items:
        return TrainSummary(steps=0, accepted=0, action_tokens=0)
    started = time.monotonic()
    _set_trainable(model)
    objective = _Objective(model, config.divergence)
    watch = _Watch(objective, progress)
    trainer = Trainer(
        model=objective,
        args=_arguments(model, config, seed, output_dir),
        train_dataset=list(enumerate(items)),
        data_collator=_single,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    model.eval()
    before = objective.probed
    probe = sum(len(items[index].packed.targets) for index in before)
    return TrainSummary(
        steps=len(watch.losses),
        accepted=len(items),
        action_tokens=tokens,
        first_loss=watch.losses[0],
        last_loss=watch.losses[-1],
        divergence_before=sum(before.values()) / probe,
        divergence_after=sum(objective.total(items[index]) for index in before) / probe,
        seconds=time.monotonic() - started,
    )


class _Objective(nn.Module):
    """The policy and its loss as one module, so that whatever wraps it for many devices sees one forward."""

    accepts_loss_kwargs = True  # Trainer then passes the number of labels in the optimizer step

    def __init__(self, policy: nn.Module, kind: str) -> None:
        super().__init__()
        self.policy = policy
        self.kind = kind
        self.probing = True
        self.probed: dict[int, float] = {}  # item number -> its summed loss before the first update
        trained = any(weight.requires_grad for weight in head(policy).parameters())
        self._teacher_head = [copy.deepcopy(head(policy))] if trained else []  # in a list, so that it is no child

    def forward(self, index: int, item: TrainItem, labels: Tensor, num_items_in_batch: Tensor) -> dict[str, Tensor]:
        """Weighted sum of token losses over the action tokens of the whole optimizer step."""
        del labels  # only there to be counted
        loss = self.token_losses(item).sum()
        if self.probing:
            self.probed[index] = float(loss.detach())
        return {"loss": item.weight * loss / num_items_in_batch}

    def token_losses(self, item: TrainItem) -> Tensor:
        """Loss at every action token: [A]."""
        hidden = hidden_states(self.policy, item.packed)
        teacher = None if item.teacher is None else item.teacher.to(hidden.device)
        kind = "sft" if teacher is None else self.kind
        teacher_head: Head | None = self._teacher_head[0] if self._teacher_head else None
        targets = item.packed.targets.to(hidden.device)
        return chunked_loss(hidden, head(self.policy), targets, kind, teacher_TD=teacher, teacher_head=teacher_head)

    @torch.no_grad()
    def total(self, item: TrainItem) -> float:
        """Summed token losses with the weights of this moment."""
        return float(self.token_losses(item).sum())


class _Watch(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Reports every optimizer step and ends the probe after the first."""

    def __init__(self, objective: _Objective, progress: Progress | None) -> None:
        self.objective = objective
        self.progress = progress
        self.losses: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The weights have changed once: what follows is no longer 'before'."""
        self.objective.probing = False

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called once an optimizer step, and once at the end without a loss. Raises when the loss is not finite."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise InternalizeError(
                f"the loss is {logs['loss']} at optimizer step {state.global_step}: training diverged, lower the rate"
            )
        self.losses.append(logs["loss"])
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, logs["loss"])


class _Arguments(TrainingArguments):  # type: ignore[misc] # transformers is untyped
    """Never DataParallel: several devices are the business of a launcher, and batches here hold one item."""

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, int(super().n_gpu))


def _arguments(model: nn.Module, config: DistillConfig, seed: int, output_dir: Path) -> TrainingArguments:
    return _Arguments(
        output_dir=str(output_dir),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=config.batch,
        learning_rate=config.lr,
        lr_scheduler_type="linear",
        weight_decay=0.0,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        seed=seed,
        data_seed=seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=next(model.parameters()).device.type == "cpu",
    )


def _single(rows: Sequence[tuple[int, TrainItem]]) -> dict[str, Any]:
    """The one item of a batch as keyword arguments of the objective; labels are there to be counted."""
    ((index, item),) = rows
    return {"index": index, "item": item, "labels": item.packed.targets}


def _set_trainable(model: nn.Module) -> None:
    if isinstance(model, PeftModel):
        model.set_adapter("default")  # also turns its gradients on after loading
    else:
        model.requires_grad_(True)  # noqa: FBT003 - torch's signature


@torch.no_grad()
def _sane_nll(model: nn.Module, clean: Sequence[Packed], teacher: Sequence[Tensor]) -> float:
    """Mean -log p of the action tokens under the teacher. Missing weights show as a uniform teacher."""
    output = head(model)
    device = next(output.parameters()).device
    total = 0.0
    for packed, hidden_AD in zip(clean, teacher, strict=True):
        total += float(chunked_loss(hidden_AD.to(device), output, packed.targets.to(device), "sft").sum())
    nll = total / sum(len(packed.targets) for packed in clean)
    uniform = math.log(next(output.parameters()).shape[0])
    if not nll < uniform - SANE_MARGIN:  # written so that NaN fails
        raise InternalizeError(
            f"the teacher's NLL on its own action tokens is {nll:.3f} nats, a uniform guess has {uniform:.3f}: "
            "its weights are missing or belong to another model"
        )
    return nll
