"""Training with transformers' `Trainer`: rows of items, and states to resume from.

A saved state holds the trained weights, optimizer, schedule, random state, the averaged teacher and what was measured,
so that a training killed at any point resumes to the same weights.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import save_fsdp_optimizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback
from transformers.trainer import SCHEDULER_NAME

from internalize.config.specs import Round
from internalize.errors import InternalizeError, UserError
from internalize.runs.files import sync, sync_folder

from .arguments import arguments_of
from .student import PolicyWithLoss
from .teachers import TrainItem
from .together import (
    EvenSampler,
    Row,
    even,
    is_sharded,
    load_optimizer,
    merged,
    optimizer_state,
    processes,
    require_shares,
    rows_of,
)
from .weights import swapped, trained, whole

Progress = Callable[[int, int, float], None]  # optimizer step, optimizer steps in all, its loss

_LOG = logging.getLogger(__name__)
_WEIGHTS, _AVERAGE, _MEASURED = "trained.safetensors", "average.safetensors", "measured.json"


class DistillTrainer(Trainer):  # type: ignore[misc] # transformers is untyped
    """Trainer of rows that saves only what is trained, and may hand its optimizer on to the next round."""

    model: PolicyWithLoss
    rows = 0  # of the data, without fillers
    part: Round | None = None
    carried: dict[str, Any] | None = None  # optimizer and average of the round before

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The passes of a row one after the other, so that only one graph is alive at a time."""
        step = super().training_step
        losses = [
            step(
                model,
                {"items": [(index, self._taught(item)) for index, item in one], "labels": inputs["labels"]},
                num_items_in_batch,
            )
            for one in self.model.passes(inputs["row"])
        ]
        return torch.stack(losses).sum()

    def _taught(self, item: TrainItem) -> TrainItem:
        """The item, with an averaged teacher's states if weights are sharded: these cannot change inside of a pass."""
        if item.teacher_input is None or self.model.average is None or not is_sharded(self.model):
            return item
        whole_model: Any = self.model
        whole_model.reshard()  # else weights that an earlier pass put together would be used again
        torch.clear_autocast_cache()
        with swapped(self.model.policy, self.model.average.state):
            teacher_AD = self.model.measure("teacher_states", item.teacher_input)
            whole_model.reshard()
        torch.clear_autocast_cache()
        return replace(item, teacher_AD=teacher_AD, teacher_input=None)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if processes() == 1:
            return super()._get_train_sampler(train_dataset)
        return EvenSampler(self.rows, len(self.train_dataset), self.args.data_seed)

    def continue_from(self, part: Round) -> None:
        """Take the average of the round before now, lest it overwrite that of a resumed state, the optimizer later."""
        self.part = part
        if part.carried_in:
            self.carried = torch.load(part.carried_in, map_location="cpu", weights_only=True)
        if self.carried and self.model.average is not None:
            self.model.average.load(self.carried["average"])

    def save_for_next_round(self, file: Path) -> None:
        """Write optimizer and average; all processes must call it, and the first one writes."""
        state = self.model.average.state if self.model.average else {}
        average = {name: whole(tensor) for name, tensor in state.items()}
        optimizer = optimizer_state(self.model, self.optimizer)
        if not self.is_world_process_zero():
            return
        unfinished = file.with_name(file.name + ".part")
        torch.save({"optimizer": optimizer, "average": average}, unfinished)
        sync(unfinished)
        unfinished.replace(file)
        sync_folder(file.parent)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of all rounds together, from the first step of this round on; the optimizer carries on too.

        It is created just before, and by now its weights are sharded where they will be.
        """
        if self.carried:
            load_optimizer(self.model, self.optimizer, self.carried["optimizer"])
            for group in self.optimizer.param_groups:
                group["lr"] = group["initial_lr"] = self.args.learning_rate
        if self.part is None:
            return super().create_scheduler(num_training_steps, optimizer)
        first, schedule = self.part.first_step, super().create_scheduler(self.part.of_steps, optimizer)
        # `rate=rate` binds now: all the functions would use the last rate otherwise
        schedule.lr_lambdas = [lambda step, rate=rate: rate(step + first) for rate in schedule.lr_lambdas]
        groups = schedule.optimizer.param_groups
        for group, rate, base in zip(groups, schedule.lr_lambdas, schedule.base_lrs, strict=True):
            group["lr"] = base * rate(0)
        return schedule

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:  # noqa: FBT001, FBT002
        """With sharded weights every process takes part, and what is not trained is left out as it is elsewhere."""
        if self.is_fsdp_enabled:
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        plugin = self.accelerator.state.fsdp_plugin  # Trainer would save the weights again, frozen ones too
        save_fsdp_optimizer(plugin, self.accelerator, self.optimizer, self.model, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:  # noqa: ARG002
        folder, model = Path(output_dir or self.args.output_dir), self.model
        own = {name: whole(weight.detach()).contiguous() for name, weight in trained(model.policy).items()}
        state = model.average.state if model.average else {}
        average = {name: whole(tensor).contiguous() for name, tensor in state.items()}
        if not self.args.should_save:
            return
        folder.mkdir(parents=True, exist_ok=True)
        save_file(own, folder / _WEIGHTS)
        if average:
            save_file(average, folder / _AVERAGE)
        measured = {"first": list(model.first_losses.items()), "held_out": model.held_out_losses}
        measured["without_gradient"] = model.without_gradient
        (folder / _MEASURED).write_text(json.dumps(measured), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        if is_sharded(self.model):  # a second call: they were loaded before they were sharded
            return
        folder = Path(resume_from_checkpoint)
        state = load_file(folder / _WEIGHTS)
        with torch.no_grad():
            for name, weight in trained(self.model.policy).items():
                weight.copy_(state[name])
        if self.model.average is not None:
            self.model.average.load(load_file(folder / _AVERAGE))
        measured = json.loads((folder / _MEASURED).read_text(encoding="utf-8"))
        self.model.first_losses = {int(index): loss for index, loss in measured["first"]}
        self.model.held_out_losses = measured["held_out"]
        self.model.without_gradient = tuple(measured.get("without_gradient", ()))
        self.model.is_first_step = False


class AfterStep(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """What happens after an optimizer step: the average moves, an epoch is measured, progress is reported."""

    def __init__(self, model: PolicyWithLoss, progress: Progress | None) -> None:
        self.model = model
        self.progress = progress

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Gradients are complete: what has none in the first step is not learnt. Raises UserError if nothing is."""
        if self.model.is_first_step:
            weights = trained(self.model.policy)
            self.model.without_gradient = tuple(name for name, weight in weights.items() if weight.grad is None)
            if without := self.model.without_gradient:
                if len(without) == len(weights):
                    raise UserError(f"none of the {len(weights)} trained tensors gets a gradient, first {without[0]}")
                _LOG.warning(
                    "%d of %d trained tensors get no gradient, first %s", len(without), len(weights), without[0]
                )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The weights have changed; called before a state is saved, so that the state includes all of this."""
        model = self.model
        if model.is_first_step:
            model.first_losses = merged(model.first_losses)
        model.is_first_step = False
        if model.average is not None:
            model.average.update(model.policy)
        an_epoch = max(1, round(state.max_steps / state.num_train_epochs))
        if model.settings.early_stop and model.data.held_out and state.global_step % an_epoch == 0:
            model.held_out_losses.append(model.measure("held_out_loss"))
            control.should_training_stop = control.should_training_stop or model.stopped

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called once an optimizer step, and once at the end without a loss. Raises when the loss is not finite."""
        loss = kwargs["logs"].get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise InternalizeError(
                f"the loss is {loss} at optimizer step {state.global_step}: training diverged, lower the rate"
            )
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, loss)


def build_trainer(
    model: PolicyWithLoss, seed: int, folder: Path, part: Round | None = None, progress: Progress | None = None
) -> DistillTrainer:
    """The trainer of `model` on its data: AdamW, linear decay to 0, seeded order, unless the config says otherwise."""
    config = model.settings
    if processes() > 1:
        require_shares(config, processes())

    def collate(rows: Sequence[Row]) -> dict[str, Any]:
        """The rows as one. Labels are only counted: one per action token, or one a trajectory."""
        row = tuple(one for each in rows for one in each)
        targets = [item.packed.targets for index, item in row if index is not None]
        by_token = config.per == "token" and targets
        labels = torch.cat(targets) if by_token else torch.zeros(len(targets), dtype=torch.long)
        return {"row": row, "labels": labels}

    arguments = arguments_of(model.policy, config, seed, folder, one_round=part is not None)
    rows = rows_of(model.data.items, config.batch_tokens)
    trainer = DistillTrainer(
        model=model,
        args=arguments,
        train_dataset=even(rows, processes()) if processes() > 1 else rows,
        data_collator=collate,
        callbacks=[AfterStep(model, progress)],
    )
    trainer.rows = len(rows)
    if config.trainer.get("fsdp") and not trainer.is_fsdp_enabled:
        raise UserError("distill.trainer.fsdp would be ignored here: accelerate shards over several accelerators only")
    if part is not None:
        trainer.continue_from(part)
    trainer.remove_callback(PrinterCallback)
    return trainer
