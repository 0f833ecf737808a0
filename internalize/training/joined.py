"""One adapter in place of two: what a warm-up has learnt on top of another adapter, for the model without either."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from peft import PeftModel

from internalize.config.schema import Config
from internalize.errors import UserError
from internalize.inference.loading import adapter_folder, load_policy
from internalize.inference.self_check import ordinary_ids, require_rounding

from .checkpoint import save_checkpoint
from .policy import LocalPolicy, plain_logprobs

_INSTEAD = "set model.adapter = 'none' to begin with the model alone"


def join(config: Config, second: Path, policy: LocalPolicy) -> None:
    """Replace the adapter in `second`, trained on top of the recipe's own, by one that has the effect of both.

    PEFT concatenates their factors, so that the sum is exact; it is compared with `policy`, which holds both. Does
    nothing for a recipe that begins with no adapter. Raises UserError, and leaves the folder as it was, if the two
    cannot be joined.
    """
    first = adapter_folder(config.model.source, config.model.adapter)
    if first is None:
        return
    bare, tokenizer = load_policy(config.model.source, "none", config.compute.device, config.model.dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between PEFT and transformers; users cannot act on it
            both = PeftModel.from_pretrained(bare, first, adapter_name="first")
            both.load_adapter(second, adapter_name="second")
            both.add_weighted_adapter(["first", "second"], [1.0, 1.0], "default", combination_type="cat")
    except (ValueError, KeyError, TypeError, AttributeError, NotImplementedError) as error:
        raise UserError(f"{first}: PEFT cannot join this adapter with another ({error}); {_INSTEAD}") from error
    both.set_adapter("default")
    both.peft_config["default"].base_model_name_or_path = bare.name_or_path  # PEFT would look up another's on the hub
    for name in ("first", "second"):
        both.delete_adapter(name)
    ids = ordinary_ids(bare, tokenizer)[::97][:64]
    trained, joined = torch.tensor(policy.logprobs(ids, 1)), torch.tensor(plain_logprobs(both.eval(), ids, 1))
    try:
        require_rounding(both, "logprobs", (trained - joined).abs())
    except UserError as error:
        raise UserError(f"{first}: joined with another adapter, {error}; {_INSTEAD}") from error
    save_checkpoint(both, second)
