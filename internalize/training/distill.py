"""Training on packed trajectories with transformers' `Trainer`: no loop of our own.

`distill` is the stage: the teacher's answers to every example, then the student's epochs. `fit` is the part below
it, for recipes that bring their own targets. Left out: what a step is (`fitting`), who teaches (`teachers`), files
of the result (`checkpoint.py`). What must not change: the same seed, examples and settings give the same weights,
whether the training was killed and gone on with or not.
"""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers.trainer_utils import get_last_checkpoint

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.records import DistillExample, TrainSummary, content_hash

from .hf_trainer import Fit, Lossy, Progress, trainer_of
from .teachers import Given, Lessons, TrainItem, own_head, prepare
from .weights import trained

__all__ = ["Given", "Progress", "Round", "TrainItem", "distill", "fit", "new_adapter"]

NOTHING = Given()
_STATE, _INPUTS = "trainer_state.json", "inputs.json"


def new_adapter(model: nn.Module, r: int, seed: int) -> PeftModel:
    """A fresh LoRA adapter 'default' on every linear layer but the head: alpha 2r, no dropout, no effect yet."""
    config = LoraConfig(
        r=r, lora_alpha=2 * r, lora_dropout=0.0, bias="none", target_modules="all-linear", task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nothing a user can do
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
    given: Given = NOTHING,
) -> TrainSummary:
    """Move the student (clean context) towards the teacher (with experience), in place.

    `model` is a PEFT model, whose adapter 'default' is trained, or a plain one, trained whole. With `save_steps` a
    killed call, made again with the same arguments, goes on from the state in `output_dir`.
    Raises InternalizeError when the teacher finds its own action tokens hopelessly unlikely, UserError when the
    model named as teacher has other tokens.
    """
    started = time.monotonic()
    examples = [example for example in examples if any(span.end > span.start for span in example.spans)]
    if not examples or not config.epochs:
        return TrainSummary()
    lessons = prepare(model, examples, config, given, seed)
    summary = _train(model, lessons, config, seed=seed, output_dir=output_dir, progress=progress, part=given.part)
    return summary.model_copy(update={"seconds": time.monotonic() - started})


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
    if not items:
        return TrainSummary()
    taught = any(item.teacher is not None for item in items)
    lessons = Lessons(items, teacher_head=own_head(model) if taught else None)
    return _train(model, lessons, config, seed=seed, output_dir=output_dir, progress=progress)


def _train(
    model: nn.Module,
    lessons: Lessons,
    config: DistillConfig,
    *,
    seed: int,
    output_dir: Path,
    progress: Progress | None,
    part: Round | None = None,
) -> TrainSummary:
    started = time.monotonic()
    trained(model)  # turns their gradients on
    lossy = Lossy(model, lessons, config)
    trainer = trainer_of(lossy, config, seed, output_dir, part, progress)
    inputs = content_hash(
        [config.model_dump(mode="json"), seed, lessons.source, part and part.first_step, _sums(model)]
    )
    found = _state_to_go_on_from(inputs, output_dir) if config.save_steps else None
    if found is None and lessons.held:
        lossy.held.append(lossy.held_out_loss())
    _run(trainer, found)
    model.eval()
    if part and part.carried_out:
        trainer.carry(part.carried_out)
    return _summary(lossy, trainer).model_copy(update={"seconds": time.monotonic() - started})


def _run(trainer: Fit, found: str | None) -> None:
    """Train to the end, unless the state found had stopped early already."""
    if found is not None:
        trainer._load_from_checkpoint(found)  # noqa: SLF001 - our own subclass
        if trainer.model.stopped:
            trainer.state = type(trainer.state).load_from_json(str(Path(found) / _STATE))
            return
    trainer.train(resume_from_checkpoint=found)


def _sums(model: nn.Module) -> dict[str, float]:
    """What tells the weights at the start of one training, frozen ones too, from those of another."""
    return {name: float(weight.detach().double().sum()) for name, weight in model.named_parameters()}


def _state_to_go_on_from(inputs: str, folder: Path) -> str | None:
    """The last whole state in `folder` of the training with these inputs; others, and torn ones, are removed."""
    mark = folder / _INPUTS
    if not mark.is_file() or mark.read_text(encoding="utf-8") != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(inputs, encoding="utf-8")
    while (last := get_last_checkpoint(str(folder))) is not None and not _is_whole(Path(last)):
        shutil.rmtree(last)
    return str(last) if last else None


def _is_whole(state: Path) -> bool:
    """Its last file is there to the last byte: it is written after all others."""
    try:
        return (state / _STATE).read_text(encoding="utf-8").rstrip().endswith("}")
    except OSError:
        return False


@torch.no_grad()
def _summary(lossy: Lossy, trainer: Fit) -> TrainSummary:
    lessons = lossy.lessons[0]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    before = lossy.probed
    probe = sum(len(lessons.items[index].packed.targets) for index in before)
    summary = TrainSummary(
        steps=len(losses),
        accepted=len(lessons.items),
        action_tokens=sum(len(item.packed.targets) for item in lessons.items),
        first_loss=losses[0],
        last_loss=losses[-1],
        divergence_before=sum(before.values()) / probe,
        divergence_after=sum(lossy.total(lessons.items[index]) for index in before) / probe,
        stopped_early=lossy.stopped,
        teacher_nll=lessons.teacher_nll,
    )
    if not lessons.held:
        return summary
    measured = {"held_out": len(lessons.held), "held_out_before": lossy.held[0]}
    return summary.model_copy(update={**measured, "held_out_after": lossy.held_out_loss()})
