"""Weights on disk: the adapter alone for a PEFT model, else the whole model, always safetensors.

A folder is complete or absent: it is written under another name and renamed. It loads with
`PeftModel.from_pretrained` or `AutoModelForCausalLM.from_pretrained` too. An id is the hash of names, types, shapes and
bytes of the trained weights, so the same weights have the same id in memory, on disk and in a resumed run.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from internalize.errors import DataError
from internalize.runs.files import sync, sync_folder

from .weights import whole

_FULL = re.compile(r"No space left|os error 28\b|inline_container|PytorchStreamWriter")
_ADAPTER = "adapter_model.safetensors"
_WHOLE = "model.safetensors"


def save_checkpoint(model: nn.Module, folder: Path) -> str:
    """Write the trained weights and their config to `folder`, replacing it, and return their id.

    If several processes train together, the first one writes and the others wait.
    """
    state = trained_state(model)
    together = dist.is_available() and dist.is_initialized()
    if not together or dist.get_rank() == 0:
        _write(model, state, folder)
    if together:
        dist.barrier()
    return checkpoint_id(state)


def _write(model: nn.Module, state: Mapping[str, Tensor], folder: Path) -> None:
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with saving(part):
        save_file(dict(state), part / _file_of(model), metadata={"format": "pt"})
    config: Any = copy(model.peft_config["default"]) if isinstance(model, PeftModel) else model.config
    if isinstance(modules := getattr(config, "target_modules", None), set):
        config.target_modules = sorted(modules)  # sorted: a set has another order in each process
    config.save_pretrained(part)
    sync(part)
    if folder.exists():
        shutil.rmtree(folder)
    part.rename(folder)
    sync_folder(folder.parent)


@contextmanager
def saving(folder: Path) -> Iterator[None]:
    """Raises OSError for a full disk, which torch and safetensors report as errors of their own."""
    try:
        yield
    except (RuntimeError, SafetensorError) as error:
        if not _FULL.search(str(error)):
            raise
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def load_checkpoint(model: nn.Module, folder: Path, expected: str = "") -> str:
    """Load the weights of `folder` into `model` in place and return their id.

    Raises DataError if they cannot be read, have other shapes than the model, or have another id than `expected`.
    """
    state = _read(folder / _file_of(model))
    if expected and (found := checkpoint_id(state)) != expected:
        raise DataError(f"{folder}: holds the weights {found}, but its record names {expected}")
    own = trained_state(model)
    odd = [key for key in sorted(state.keys() | own.keys()) if _shape(state, key) != _shape(own, key)]
    if odd:
        raise DataError(f"{folder}: not weights of this model ({len(odd)} tensors differ, first {odd[0]})")
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, state)
    else:
        model.load_state_dict(state, strict=False)  # not strict: tied copies are not saved
    return checkpoint_id(state)


def checkpoint_id(source: Path | Mapping[str, Tensor]) -> str:
    """12 hex digits of the SHA-256 of the weights in a folder or a state."""
    state = _read_any(source) if isinstance(source, Path) else source
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """The adapter 'default' of a PEFT model, or every weight of a plain one without tied copies; on the CPU."""
    if isinstance(model, PeftModel):
        state: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name="default")
    else:
        tied = getattr(model, "all_tied_weights_keys", {})
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: whole(tensor.detach()).cpu().contiguous() for name, tensor in state.items()}


def _file_of(model: nn.Module) -> str:
    return _ADAPTER if isinstance(model, PeftModel) else _WHOLE


def _shape(state: Mapping[str, Tensor], key: str) -> tuple[int, ...] | None:
    return tuple(state[key].shape) if key in state else None


def _read_any(folder: Path) -> dict[str, Tensor]:
    return _read(folder / (_ADAPTER if (folder / _ADAPTER).exists() else _WHOLE))


def _read(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{file}: cannot read the weights ({error})") from error
