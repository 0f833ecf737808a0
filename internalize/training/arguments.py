"""The arguments of transformers' `Trainer` that a recipe gives, checked before any rollout."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from internalize.config.distill import DistillConfig
from internalize.errors import UserError, first_line

from .together import processes

_LAUNCHED = frozenset({"deepspeed", "fsdp", "fsdp_config"})


class _Arguments(TrainingArguments):  # type: ignore[misc] # transformers is untyped
    """Arguments without DataParallel: a launcher sets up several devices, and a batch here is made of rows."""

    @property
    def n_gpu(self) -> int:
        """At most one GPU."""
        return min(1, int(super().n_gpu))


def require_arguments(config: DistillConfig, device: torch.device) -> None:
    """Raises UserError for values of [distill.trainer] or `report_to` that transformers would refuse after rollouts.

    Arguments that need a launcher (`_LAUNCHED`) are not checked.
    """
    if "deepspeed" in config.trainer and find_spec("deepspeed") is None:
        raise UserError("distill.trainer.deepspeed needs the package deepspeed: pip install deepspeed")
    alone = config.model_copy(update={"trainer": {k: v for k, v in config.trainer.items() if k not in _LAUNCHED}})
    try:
        with TemporaryDirectory() as folder:
            arguments = arguments_of(nn.Linear(1, 1, device=device), alone, 0, Path(folder), one_round=False)
        Trainer.get_optimizer_cls_and_kwargs(arguments)
        for callback in get_reporting_integration_callbacks(arguments.report_to):
            callback()
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise UserError(f"distill.trainer or distill.report_to: {first_line(error)}") from error


def arguments_of(
    model: nn.Module, config: DistillConfig, seed: int, folder: Path, *, one_round: bool
) -> TrainingArguments:
    """The arguments of a recipe. All processes of a training share the rows of an optimizer step.

    A single process takes all rows of a step at once, so that short items can share a pass.
    """
    rows = 1 if config.batch_tokens else config.batch // processes()
    together = rows if processes() == 1 else 1
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "num_train_epochs": 1 if one_round else config.epochs,
        "per_device_train_batch_size": together,
        "gradient_accumulation_steps": rows // together,
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
    return _Arguments(**arguments | config.trainer)
