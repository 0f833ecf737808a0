"""From last hidden states to logits by the model's own forward, with its scales, soft caps and other steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from internalize.errors import UserError

_BELOW: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()  # results of `backbone`


def causal_lm(model: Any) -> Any:
    """The language model itself, without PEFT's wrapper."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def backbone(model: nn.Module) -> Any:
    """The transformer that the language model calls below its head, with its adapters if it has any."""
    whole = causal_lm(model)
    if whole not in _BELOW:
        base = whole.base_model
        parts = [part for part in (base, *base.children()) if isinstance(part, PreTrainedModel) and part is not whole]
        found = next((part for part in parts if _is_called(whole, part)), None)
        if found is None:
            raise UserError(f"{type(whole).__name__} has no transformer apart from its head")
        _BELOW[whole] = found
    return _BELOW[whole]


class _CalledError(Exception):
    """Ends the trial pass as soon as it reaches the part in question."""


def _is_called(whole: nn.Module, part: nn.Module) -> bool:
    def called(*_: Any, **__: Any) -> None:
        raise _CalledError

    ids = torch.zeros(1, 1, dtype=torch.long, device=next(whole.parameters()).device)
    try:
        with torch.no_grad(), _with_forward(part, called):
            whole(input_ids=ids, use_cache=False)
    except _CalledError:
        return True
    return False


class _Given(BaseModelOutputWithPast):  # type: ignore[misc] # transformers is untyped
    """The output of the transformer below the head: the given hidden states, and None for everything else."""

    def __getattr__(self, name: str) -> None:
        return None


class ModelHead(nn.Module):
    """The head of a causal language model: [..., D] -> [..., V] by the model's own forward, below which nothing runs.

    `weights` replace the head's own weights, by their names in the model.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self._whole = (causal_lm(model), backbone(model))  # in a tuple, so that they do not become submodules
        self._weights = dict(weights or {})
        whole, below = self._whole
        first = {id(weight) for weight in whole.get_output_embeddings().parameters()}
        inside = tuple(f"{name}." for name, module in whole.named_modules() if module is below)
        own = [entry for entry in whole.named_parameters(remove_duplicate=False) if not entry[0].startswith(inside)]
        self._own = sorted(own, key=lambda entry: (id(entry[1]) not in first, -entry[1].dim()))

    def named_parameters(self, *_: Any, **__: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The weights outside the transformer below the head, the output layer's first, tied ones included."""
        yield from self._own

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        whole, below = self._whole
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        ids = torch.zeros(rows.shape[:2], dtype=torch.long, device=rows.device)
        given = _Given(last_hidden_state=rows)
        with _with_forward(below, lambda *_, **__: given):
            if self._weights:
                arguments = {"input_ids": ids, "use_cache": False}
                output = functional_call(whole, self._weights, kwargs=arguments, tie_weights=False)
            else:
                output = whole(input_ids=ids, use_cache=False)
        logits: Tensor = output.logits
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])


def head(model: nn.Module) -> ModelHead:
    """The head of a model, with the weights that it has at each call."""
    return ModelHead(model)


@contextmanager
def _with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Replace the forward of `module` by `forward` within the block."""
    before = vars(module).get("forward")  # accelerate sets it if layers are on several devices
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
