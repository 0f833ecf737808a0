"""The stage `distill`: the teacher scores every example, then the student trains. `fit` is the training alone.

The same seed, examples and settings give the same weights, whether or not the training was killed and resumed.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers.trainer_utils import get_last_checkpoint

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.records import DistillExample, TrainSummary, content_hash

from .checkpoint import saving
from .hf_trainer import DistillTrainer, Progress, build_trainer
from .student import PolicyWithLoss
from .teachers import References, TrainingSet, TrainItem, build_training_set, head_snapshot
from .weights import trained

_STATE, _INPUTS = "trainer_state.json", "inputs.json"


def distill(  # noqa: PLR0913 - the state of a run beside model, data and settings
    model: nn.Module,
    examples: Sequence[DistillExample],
    config: DistillConfig,
    *,
    seed: int,
    output_dir: Path,
    progress: Progress | None = None,
    references: References = References(),  # noqa: B008 - frozen
    part: Round | None = None,
) -> TrainSummary:
    """Train the student (without experience) towards the teacher (with experience), in place.

    `model` is a PEFT model, whose adapter 'default' is trained, or a plain model, trained whole. `part` is one round of
    several (None: the whole training). With `save_steps` a killed call, repeated with the same arguments, resumes from
    the state in `output_dir`. Raises InternalizeError if the teacher's NLL is no better than a uniform guess, UserError
    if the model named as teacher has another tokenizer.
    """
    started = time.monotonic()
    examples = [example for example in examples if any(span.end > span.start for span in example.spans)]
    if not examples or not config.epochs:
        return TrainSummary()
    data = build_training_set(model, examples, config, references, seed, part)
    summary = _train(model, data, config, seed=seed, output_dir=output_dir, progress=progress, part=part)
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
    """Train on `items` in place, for recipes with targets of their own. Seeds the global generators.

    The model is left in evaluation mode. Raises InternalizeError as soon as the loss is not finite; then the weights
    are lost.
    """
    if not items:
        return TrainSummary()
    taught = any(item.teacher_AD is not None for item in items)
    data = TrainingSet(items, teacher_head=head_snapshot(model) if taught else None)
    return _train(model, data, config, seed=seed, output_dir=output_dir, progress=progress)


def _train(
    model: nn.Module,
    data: TrainingSet,
    config: DistillConfig,
    *,
    seed: int,
    output_dir: Path,
    progress: Progress | None,
    part: Round | None = None,
) -> TrainSummary:
    started = time.monotonic()
    trained(model)  # turns their gradients on
    student = PolicyWithLoss(model, data, config)
    trainer = build_trainer(student, seed, output_dir, part, progress)
    state = None
    if config.save_steps:
        # Frozen weights are inputs too: the same adapter on another base is another training.
        sums = {name: float(weight.detach().double().sum()) for name, weight in model.named_parameters()}
        inputs = [config.model_dump(mode="json"), seed, data.digest, part and part.first_step, sums]
        with trainer.accelerator.main_process_first():  # removes states of other trainings
            state = _state_to_resume(content_hash(inputs), output_dir)
    if state is None and data.held_out:
        student.held_out_losses.append(student.held_out_loss())
    with saving(output_dir):
        _run(trainer, state)
        model.eval()
        if part and part.carried_out:
            trainer.save_for_next_round(part.carried_out)
    return _summary(student, trainer).model_copy(update={"seconds": time.monotonic() - started})


def _run(trainer: DistillTrainer, state: Path | None) -> None:
    """Train to the end, unless the resumed state had stopped early already."""
    if state is not None:
        trainer._load_from_checkpoint(str(state))  # noqa: SLF001 - our own subclass
        if trainer.model.stopped:
            trainer.state = type(trainer.state).load_from_json(str(state / _STATE))
            return
    trainer.train(resume_from_checkpoint=state and str(state))


def _state_to_resume(inputs: str, folder: Path) -> Path | None:
    """The last complete state in `folder` of the training with these inputs; all other states are removed."""
    mark = folder / _INPUTS
    if not mark.is_file() or mark.read_text(encoding="utf-8") != inputs:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        mark.write_text(inputs, encoding="utf-8")
    while last := get_last_checkpoint(str(folder)):
        file = Path(last) / _STATE  # the last file to be written: its presence means a complete state
        if file.is_file() and file.read_text(encoding="utf-8").rstrip().endswith("}"):
            return Path(last)
        shutil.rmtree(last)
    return None


@torch.no_grad()
def _summary(student: PolicyWithLoss, trainer: DistillTrainer) -> TrainSummary:
    items, held_out, before = student.data.items, student.data.held_out, student.first_losses
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    tokens = sum(len(items[index].packed.targets) for index in before)
    return TrainSummary(
        steps=len(losses),
        accepted=len(items),
        action_tokens=sum(len(item.packed.targets) for item in items),
        first_loss=losses[0],
        last_loss=losses[-1],
        divergence_before=sum(before.values()) / tokens,
        divergence_after=sum(student.measure("total", items[index]) for index in before) / tokens,
        held_out=len(held_out),
        held_out_before=student.held_out_losses[0] if held_out else None,
        held_out_after=student.measure("held_out_loss") if held_out else None,
        stopped_early=student.stopped,
        teacher_nll=student.data.teacher_nll,
        tensors=len(trained(student.policy)),
        without_gradient=len(student.without_gradient),
    )
