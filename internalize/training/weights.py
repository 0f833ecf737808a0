"""The trained weights by name: copies of them, a moving average of them, a model that holds others for a while.

With LoRA these are the adapter's, so that a teacher with other weights needs no second model; with full fine-tuning
they are all weights. Sharded weights are not supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn

from .head import ModelHead, head
from .losses import Head

State = Mapping[str, Tensor]


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training moves, in order; their gradients are turned on."""
    if isinstance(model, PeftModel):
        model.set_adapter("default")  # also turns its gradients on after loading
    else:
        model.requires_grad_(True)  # noqa: FBT003 - torch's signature
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained parameters of this moment, where they are."""
    return {name: weight.detach().clone() for name, weight in trained(model).items()}


@contextmanager
def swapped(model: nn.Module, state: State | None) -> Iterator[None]:
    """The model holds other weights inside, and its own again afterwards, whatever happens; None changes nothing.

    Not to be used between a forward pass and its backward pass.
    """
    own = trained(model) if state is not None else {}
    kept = {name: weight.data for name, weight in own.items()}
    try:
        for name, weight in own.items():
            weight.data = state[name].to(weight.device) if state is not None else weight.data
        yield
    finally:
        for name, weight in own.items():
            weight.data = kept[name]


class Average:
    """An exponential moving average of the trained weights: a <- decay * a + (1 - decay) * weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.state = snapshot(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Once an optimizer step."""
        for name, weight in trained(model).items():
            self.state[name].lerp_(weight.detach(), 1.0 - self.decay)

    def load(self, state: State) -> None:
        """Go on from a stored average."""
        for name, tensor in state.items():
            self.state[name].copy_(tensor)


def head_with(model: nn.Module, state: State) -> Head | None:
    """The head with the weights it has in `state`; None if it is not among the trained ones."""
    names = {id(weight): name for name, weight in trained(model).items()}
    own = {place: state[names[id(weight)]] for place, weight in head(model).named_parameters() if id(weight) in names}
    return ModelHead(model, own) if own else None
