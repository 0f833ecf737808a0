"""Loads the policy: the built-in model, a Hugging Face name or folder, or a GGUF file, with its starter adapter.

Reading a GGUF file takes half a minute, so it is converted once into the cache folder. Weights are quantized only where
a recipe says so.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from internalize.errors import InternalizeError, UserError, first_line
from internalize.runs.cache import built, cache_folder

from .architecture import gguf_file, located, require_reachable

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LOG = logging.getLogger(__name__)
# Code in a model's folder is never run; without this option transformers would ask on the terminal.
OWN_CODE: dict[str, Any] = {"trust_remote_code": False}


@contextmanager
def _loading(what: str) -> Iterator[None]:
    """Turns every error of the libraries into UserError, because broken files can raise anything."""
    try:
        yield
    except InternalizeError:
        raise
    except Exception as error:
        raise UserError(f"{what}: {first_line(error)}") from error


def load_policy(
    source: str, adapter: str = "", device: str = "auto", dtype: str = "float32", quantize: str = "none"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in evaluation mode with its adapter merged, and tokenizer.

    `adapter`: a PEFT folder; "" = none, but the packaged starter for 'builtin'; "none" = none at all. `quantize`:
    "4bit" = linear layers in NF4 by bitsandbytes, for a model without an adapter; "none" = none at all.
    Raises UserError if the model or the adapter cannot be found or read, or if their files do not contain exactly the
    tensors of the model.
    """
    _silence_libraries()
    options = _quantized(resolve_device(device), getattr(torch, dtype)) if quantize == "4bit" else {}
    with _loading(f"model {source!r} cannot be loaded"):
        folder = _folder(source)
        tokenizer = AutoTokenizer.from_pretrained(folder, **OWN_CODE)
        model = _pretrained(source, folder, dtype=getattr(torch, dtype), **options)
    if merged := adapter_folder(source, adapter):
        model = _with_adapter(model, merged)
    if not options:
        model = model.to(resolve_device(device))
    for part in model.modules():  # else quantized layers may silently take a path without gradients
        if hasattr(part, "support_avx512bf16_for_cpu"):
            part.support_avx512bf16_for_cpu = False
    return model.eval(), tokenizer


def _quantized(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The options with which transformers loads a model in 4 bits. Raises UserError without the package.

    8 bits are not offered: they round the inputs of a layer too, so a sampled token and the same token in a plain pass
    would differ by 0.04 nats.
    """
    if find_spec("bitsandbytes") is None:
        raise UserError("model.quantize = '4bit' needs the package bitsandbytes: pip install bitsandbytes")
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": dtype}
    return {"quantization_config": transformers.BitsAndBytesConfig(**four), "device_map": {"": str(device)}}


def _pretrained(source: str, folder: str | Path, **options: Any) -> PreTrainedModel:
    """The model in `folder`. Raises UserError unless its files contain exactly the tensors of the model.

    transformers initializes missing tensors at random and ignores unexpected ones. Its report leaves out tied weights
    and tensors that the model class declares ignorable.
    """
    wanted = {"output_loading_info": True, "ignore_mismatched_sizes": True, **OWN_CODE, **options}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(folder, **wanted)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        model, report = AutoModelForImageTextToText.from_pretrained(folder, **wanted)  # only its text part acts
    for kind, names in (
        ("missing from its files", report["missing_keys"]),
        ("of another shape in its files than its config says", [name for name, *_ in report["mismatched_keys"]]),
        (f"in its files but unknown to {type(model).__name__}", report["unexpected_keys"]),
    ):
        if names:
            raise UserError(f"model {source!r} cannot be used: tensors {kind}: {len(names)}, first {min(names)}")
    return model


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer without the model. Raises UserError if it cannot be found or read."""
    _silence_libraries()
    with _loading(f"the tokenizer of {source!r} cannot be loaded"):
        return AutoTokenizer.from_pretrained(_folder(source), **OWN_CODE)


def servable(source: str, adapter: str, dtype: str, out: Path) -> str:
    """What a server can load to serve the policy: its own folder or name, or `out`, where it is merged once."""
    merged = adapter != "none" and (adapter or source == "builtin")
    if not merged:
        return _folder(source)
    if not out.exists():
        part = out.with_name(f".{out.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        model, tokenizer = load_policy(source, adapter, "cpu", dtype)
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        part.rename(out)
    return str(out.resolve())


def resolve_device(device: str) -> torch.device:
    """'auto' is the first CUDA device if there is one (in a launcher's process: its own), else the CPU.

    Raises UserError for a device that does not exist.
    """
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise UserError(f"compute.device = {device!r}: no such device") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(f"compute.device = {device!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return found


def converted(gguf: Path, convert: Callable[[Path, Path], None]) -> Path:
    """The cache folder filled by `convert(gguf, folder)`, now or earlier; it appears complete or not at all.

    Its name depends on path, size and modification time. Raises UserError if the cache cannot be written.
    """
    state = gguf.stat()
    key = hashlib.sha256(f"{gguf.resolve()}|{state.st_size}|{state.st_mtime_ns}".encode()).hexdigest()[:12]
    target = cache_folder() / f"{gguf.stem}-{key}"
    try:
        return built(target, lambda folder: convert(gguf, folder))
    except PermissionError as error:
        raise UserError(f"cannot write the model cache {target.parent}; set INTERNALIZE_CACHE to a folder") from error


def _convert(gguf: Path, folder: Path) -> None:
    _LOG.info("converting %s, once; this takes about half a minute", gguf.name)
    with redirect_stderr(io.StringIO()):  # the GGUF reader prints a progress bar
        model = _pretrained(gguf.name, gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, **OWN_CODE)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # transformers refuses to save a model that it considers quantized
    plain = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _folder(source: str) -> str:
    """The folder or hub name for `from_pretrained`. Raises UserError if it does not exist or cannot be reached."""
    if source == "builtin" or source.endswith(".gguf"):
        return str(converted(gguf_file(source), _convert))
    source = located(source)
    path = Path(source).expanduser()
    if path.is_absolute() or source.startswith("."):
        if not path.is_dir():
            raise UserError(f"model folder {source!r} does not exist")
        return str(path)
    if not path.is_dir():
        require_reachable(source)
    return source


def adapter_folder(source: str, adapter: str) -> Path | None:
    """The PEFT folder that `load_policy` merges; None if there is none. Raises UserError if it holds no adapter."""
    if adapter == "none" or not (adapter or source == "builtin"):
        return None
    folder = Path(adapter).expanduser() if adapter else Path(str(files("internalize.inference") / "starter"))
    if not (folder / "adapter_config.json").is_file():
        where = f"adapter folder {adapter!r}" if adapter else "the packaged starter adapter"
        raise UserError(f"{where} is missing; set model.adapter to a PEFT folder, or to 'none'")
    return folder


def _with_adapter(model: Any, folder: Path) -> Any:
    """The model with a PEFT folder merged into its weights."""
    from peft import PeftModel  # noqa: PLC0415 - slow to import, and only needed here

    with _loading(f"adapter {str(folder)!r} does not fit the model"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a warning that users cannot act on
        warnings.filterwarnings("error", ".*missing adapter keys")  # PEFT would initialize them at random
        return PeftModel.from_pretrained(model, folder).merge_and_unload()


def _silence_libraries() -> None:
    """Keep progress bars, warnings and retries of libraries off the terminal: the caller gets an exception instead."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("huggingface_hub", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
