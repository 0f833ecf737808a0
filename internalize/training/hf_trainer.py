"""The training loop as transformers' `Trainer` sees it: one module with the loss, rows of items, states to go on from.

A row is one trajectory (a batch is accumulated) or, counted by tokens, a group of them whose gradients are added
up one by one; an item's like in context follows it. A saved state holds the trained weights, optimizer, schedule
and random state, a moving teacher's average, and what was measured so far, so that a training killed at any point
goes on to the same weights. Left out: padding. What must not change: the loss of an optimizer step is
sum(weight * token loss) / action tokens in that step ('token'), or the mean over its trajectories of weight * mean
token loss ('trajectory'): neither weights nor likes in context ever change the denominator.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks
from transformers.modeling_layers import GradientCheckpointingLayer

from internalize.config.distill import DistillConfig
from internalize.config.specs import Round
from internalize.errors import InternalizeError, UserError, first_line

from .losses import Anchor, Head, Objective, chunked_loss
from .scoring import head, hidden_states, teacher_hidden
from .teachers import Lessons, TrainItem
from .weights import Average, head_with, swapped, trained

Progress = Callable[[int, int, float], None]  # optimizer step, optimizer steps in all, its loss
Row = tuple[tuple[int, TrainItem], ...]  # item numbers and items

_LAUNCHED = frozenset({"deepspeed", "fsdp", "fsdp_config"})
_WEIGHTS, _AVERAGE, _SEEN = "trained.safetensors", "average.safetensors", "seen.json"


class Lossy(nn.Module):
    """The policy and its loss as one module, so that whatever wraps it for many devices sees one forward."""

    accepts_loss_kwargs = True  # Trainer then passes the number of labels in the optimizer step

    def __init__(self, policy: nn.Module, lessons: Lessons, config: DistillConfig) -> None:
        super().__init__()
        self.policy = policy
        self.settings = config
        self.objective = Objective(**config.divergence.model_dump())
        self.lessons = [lessons]  # in a list, so that its heads are no children
        averaged = config.teacher if config.asks_teacher and config.teacher.kind == "ema" else None
        self.average = Average(policy, averaged.decay) if averaged else None
        self.probing = True
        self.probed: dict[int, float] = {}  # item number -> its summed loss before the first update
        self.held: list[float] = []  # held-out loss before training and after every epoch

    def forward(self, index: int, item: TrainItem, labels: Tensor, num_items_in_batch: Tensor) -> dict[str, Tensor]:
        """Weighted sum of token losses over the action tokens (or trajectories) of the whole optimizer step."""
        del labels  # only there to be counted
        loss = self.token_losses(item).sum()
        if self.probing and item is self.lessons[0].items[index]:
            self.probed[index] = float(loss.detach())
        share = item.weight if self.settings.per == "token" else item.weight / len(item.packed.targets)
        return {"loss": share * loss / num_items_in_batch}

    def token_losses(self, item: TrainItem) -> Tensor:
        """Loss at every action token: [A]."""
        teacher, teacher_head = self._teacher(item)
        hidden = hidden_states(self.policy, item.packed)
        device, anchor = hidden.device, None
        if item.anchor is not None:
            anchor_head = self.lessons[0].anchor_head or head(self.policy)
            anchor = Anchor(item.anchor.to(device), anchor_head, self.settings.kl_anchor)
        return chunked_loss(
            hidden,
            head(self.policy),
            item.packed.targets.to(device),
            Objective("sft") if teacher is None else self.objective,
            teacher_TD=None if teacher is None else teacher.to(device),
            teacher_head=teacher_head,
            anchor=anchor,
        )

    def _teacher(self, item: TrainItem) -> tuple[Tensor | None, Head | None]:
        """Hidden states and head of the teacher of this moment; no hidden states: cross-entropy."""
        if item.hinted is None:
            return item.teacher, self.lessons[0].teacher_head
        state = self.average.state if self.average else None
        # The casts of weights that autocast keeps would be the other weights': the student would train with them.
        torch.clear_autocast_cache()
        with swapped(self.policy, state):
            answer = teacher_hidden(self.policy, item.hinted)
        torch.clear_autocast_cache()
        return answer, head_with(head(self.policy), self.policy, state) if state is not None else None

    @torch.no_grad()
    def total(self, item: TrainItem) -> float:
        """Summed token losses with the weights of this moment."""
        return float(self.token_losses(item).sum())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean over the held-out action tokens of the divergence at full support (of -log q for sft), in nats."""
        lessons, total, tokens = self.lessons[0], 0.0, 0
        full = Objective(self.objective.kind, self.objective.alpha)
        for item in lessons.held:
            hidden = teacher_hidden(self.policy, item.packed)  # in evaluation mode, whatever the student trains in
            teacher = None if item.teacher is None else item.teacher.to(hidden.device)
            ids = item.packed.targets.to(hidden.device)
            output = head(self.policy)
            losses = chunked_loss(hidden, output, ids, full, teacher_TD=teacher, teacher_head=lessons.teacher_head)
            total, tokens = total + float(losses.sum()), tokens + len(ids)
        return total / tokens

    def train(self, mode: bool = True) -> Lossy:  # noqa: FBT001, FBT002 - torch's signature
        """Training mode; without `dropout` the policy stays in evaluation mode, as it was sampled and taught.

        That also turns off what else a model draws at random while it trains: dropped layers, noise of routers.
        """
        super().train(mode)
        if mode and not self.settings.dropout:
            self.policy.eval()
            for layer in self._checkpointed():
                layer.training = True  # transformers keeps activations unless it is set
        return self

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """What Trainer calls for the argument `gradient_checkpointing`."""
        policy: Any = self.policy
        policy.gradient_checkpointing_enable(**options)
        for layer in self._checkpointed():
            if not self.settings.dropout:
                layer._gradient_checkpointing_func = _in_eval(layer, layer._gradient_checkpointing_func)  # noqa: SLF001

    def _checkpointed(self) -> list[Any]:
        layers = [layer for layer in self.policy.modules() if isinstance(layer, GradientCheckpointingLayer)]
        return [layer for layer in layers if layer.gradient_checkpointing]

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss has not improved for `early_stop` epochs."""
        patience, best = self.settings.early_stop, min(self.held, default=0.0)
        return bool(patience) and len(self.held) > patience and self.held.index(best) < len(self.held) - patience


def _in_eval(layer: nn.Module, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """`checkpoint` with the layer in evaluation mode inside, forward and when the backward pass runs it again."""

    def checkpointed(forward: Callable[..., Any], *args: Any) -> Any:
        def evaluated(*inner: Any) -> Any:
            layer.training = False
            try:
                return forward(*inner)
            finally:
                layer.training = True

        return checkpoint(evaluated, *args)

    return checkpointed


class Fit(Trainer):  # type: ignore[misc] # transformers is untyped
    """Trainer that saves only what is trained, takes rows, and can carry its optimizer over to a next part."""

    model: Lossy
    part: Round | None = None
    carried: dict[str, Any] | None = None  # optimizer and average of the part before

    def training_step(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """The items of a row one after the other, so that only one graph lives at a time."""
        step = super().training_step
        losses = [
            step(model, {"index": index, "item": item, "labels": inputs["labels"]}, num_items_in_batch)
            for index, item in inputs["row"]
        ]
        return torch.stack(losses).sum()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """With the state of the part before, if there is one."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        if self.carried:
            optimizer.load_state_dict(self.carried["optimizer"])
            for group in optimizer.param_groups:
                group["lr"] = self.args.learning_rate
        return optimizer

    def carry_on(self, part: Round) -> None:
        """Take up the part before: its average now, lest it undo a state to go on from, and later its optimizer."""
        self.part = part
        if part.carried_in:
            self.carried = torch.load(part.carried_in, map_location=self.args.device, weights_only=True)
        if self.carried and self.model.average is not None:
            self.model.average.load(self.carried["average"])

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule of the whole training, from the first step of this part on."""
        if self.part is None:
            return super().create_scheduler(num_training_steps, optimizer)
        first, schedule = self.part.first_step, super().create_scheduler(self.part.of_steps, optimizer)
        schedule.lr_lambdas = [_later(rate, first) for rate in schedule.lr_lambdas]
        for group, rate, base in zip(
            schedule.optimizer.param_groups, schedule.lr_lambdas, schedule.base_lrs, strict=True
        ):
            group["lr"] = base * rate(0)
        return schedule

    def carry(self, file: Path) -> None:
        """Write optimizer and average for the next part."""
        average = self.model.average.state if self.model.average else {}
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # accelerate wraps it
        part = file.with_name(file.name + ".part")
        torch.save({"optimizer": optimizer.state_dict(), "average": average}, part)
        part.replace(file)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        gathered = {name.removeprefix("policy."): tensor for name, tensor in (state_dict or {}).items()}
        state = {
            name: gathered.get(name, weight).detach().contiguous()
            for name, weight in trained(self.model.policy).items()
        }
        save_file(state, folder / _WEIGHTS)
        if self.model.average is not None:
            save_file(
                {name: tensor.contiguous() for name, tensor in self.model.average.state.items()}, folder / _AVERAGE
            )
        seen = {"probed": list(self.model.probed.items()), "held": self.model.held}
        (folder / _SEEN).write_text(json.dumps(seen), encoding="utf-8")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:  # noqa: ARG002
        folder = Path(resume_from_checkpoint)
        state = load_file(folder / _WEIGHTS)
        with torch.no_grad():
            for name, weight in trained(self.model.policy).items():
                weight.copy_(state[name])
        if self.model.average is not None:
            self.model.average.load(load_file(folder / _AVERAGE))
        seen = json.loads((folder / _SEEN).read_text(encoding="utf-8"))
        self.model.probed = {int(index): loss for index, loss in seen["probed"]}
        self.model.held = seen["held"]
        self.model.probing = False


def _later(rate: Callable[[int], float], first: int) -> Callable[[int], float]:
    return lambda step: rate(step + first)


class Watch(TrainerCallback):  # type: ignore[misc] # transformers is untyped
    """Reports every optimizer step, moves the average, measures every epoch, and ends the probe after the first."""

    def __init__(self, lossy: Lossy, progress: Progress | None) -> None:
        self.lossy = lossy
        self.progress = progress

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The weights have changed: before anything is saved, so that a saved state has it all."""
        self.lossy.probing = False
        if self.lossy.average is not None:
            self.lossy.average.update(self.lossy.policy)
        an_epoch = max(1, round(state.max_steps / state.num_train_epochs))
        if self.lossy.settings.early_stop and self.lossy.lessons[0].held and state.global_step % an_epoch == 0:
            self.lossy.held.append(self.lossy.held_out_loss())
            control.should_training_stop = control.should_training_stop or self.lossy.stopped

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Called once an optimizer step, and once at the end without a loss. Raises when the loss is not finite."""
        logs = kwargs["logs"]
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise InternalizeError(
                f"the loss is {logs['loss']} at optimizer step {state.global_step}: training diverged, lower the rate"
            )
        if self.progress is not None:
            self.progress(state.global_step, state.max_steps, logs["loss"])


class _Arguments(TrainingArguments):  # type: ignore[misc] # transformers is untyped
    """Never DataParallel: several devices are the business of a launcher, and batches here hold one row."""

    @property
    def n_gpu(self) -> int:
        """At most one."""
        return min(1, int(super().n_gpu))


def trainer_of(
    lossy: Lossy, config: DistillConfig, seed: int, folder: Path, part: Round | None, progress: Progress | None
) -> Fit:
    """The trainer over the lessons of `lossy`; AdamW, linear decay to 0, seeded order, unless the config says else."""
    rows = _rows(lossy.lessons[0].items, config.batch_tokens)
    labels = _labels_of(config.per, lossy.lessons[0].items)
    fit = Fit(
        model=lossy,
        args=_arguments(lossy.policy, config, seed, folder, one_round=part is not None),
        train_dataset=rows,
        data_collator=lambda batch: {"row": batch[0], "labels": labels(batch[0])},
        callbacks=[Watch(lossy, progress)],
    )
    if part is not None:
        fit.carry_on(part)
    fit.remove_callback(PrinterCallback)
    return fit


def require_arguments(config: DistillConfig, device: torch.device) -> None:
    """Raises UserError for values of [distill.trainer] or `report_to` that transformers would refuse after rollouts.

    What only a launcher can set up (`_LAUNCHED`) is left to it.
    """
    if "deepspeed" in config.trainer and find_spec("deepspeed") is None:
        raise UserError("distill.trainer.deepspeed needs the package deepspeed: pip install deepspeed")
    alone = config.model_copy(update={"trainer": {k: v for k, v in config.trainer.items() if k not in _LAUNCHED}})
    try:
        with TemporaryDirectory() as folder:
            arguments = _arguments(nn.Linear(1, 1, device=device), alone, 0, Path(folder), one_round=False)
        Trainer.get_optimizer_cls_and_kwargs(arguments)
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"distill.trainer or distill.report_to: {first_line(error)}") from error


def _rows(items: Sequence[TrainItem], batch_tokens: int) -> list[Row]:
    """One item a row, or rows of items with just `batch_tokens` action tokens or more (the last may have fewer)."""
    rows: list[Row] = []
    row: list[tuple[int, TrainItem]] = []
    for pair in enumerate(items):
        row.append(pair)
        if sum(len(item.packed.targets) for _, item in row) >= batch_tokens:
            rows.append(tuple(row))
            row = []
    rows += [tuple(row)] if row else []
    return [tuple(side for pair in row for side in _sides(*pair)) for row in rows]


def _sides(index: int, item: TrainItem) -> Row:
    return ((index, item), (index, item.shown)) if item.shown else ((index, item),)


def _labels_of(per: str, items: Sequence[TrainItem]) -> Callable[[Row], Tensor]:
    """Labels are there to be counted: as many as there are action tokens, or trajectories, of `items`."""

    def labels(row: Row) -> Tensor:
        targets = [item.packed.targets for index, item in row if item is items[index]]
        return torch.cat(targets) if per == "token" else torch.zeros(len(targets), dtype=torch.long)

    return labels


def _arguments(
    model: nn.Module, config: DistillConfig, seed: int, folder: Path, *, one_round: bool
) -> TrainingArguments:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1 if one_round else config.epochs,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1 if config.batch_tokens else config.batch,
        "learning_rate": config.lr,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 1,
        "save_total_limit": 1,
        "report_to": list(config.report_to) or "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "use_cpu": next(model.parameters()).device.type == "cpu",
    }
    return _Arguments(**given | config.trainer)
