"""The trained weights by name: copies of them, a moving average of them, a model that holds others for a while.

With LoRA these are the adapter's, so that a teacher with other weights needs no second model; with full fine-tuning
they are all weights. Weights that are spread over processes (FSDP2) are tensors of their own kind: their shards change
in place, since a forward pass puts them together from the memory that they had at first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

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


def whole(tensor: Tensor) -> Tensor:
    """The whole tensor, gathered if it is sharded; every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def spread_like(tensor: Tensor, weight: Tensor) -> Tensor:
    """The tensor on the device of `weight`, and sharded as it is; every process must call this."""
    if isinstance(weight, DTensor) and not isinstance(tensor, DTensor):
        return distribute_tensor(tensor.to(weight.device), weight.device_mesh, weight.placements)
    return tensor.to(weight.device)


@contextmanager
def swapped(model: nn.Module, state: State | None) -> Iterator[None]:
    """The model holds other weights inside, and its own again afterwards, whatever happens; None changes nothing.

    Not to be used between a forward pass and its backward pass, nor with sharded weights inside of a forward pass.
    """
    own = trained(model) if state is not None else {}
    kept = {name: weight.data.clone() if isinstance(weight, DTensor) else weight.data for name, weight in own.items()}
    try:
        for name, weight in own.items():
            _put(weight, weight.data if state is None else spread_like(state[name], weight))
        yield
    finally:
        for name, weight in own.items():
            _put(weight, kept[name])


def _put(weight: nn.Parameter, data: Tensor) -> None:
    if isinstance(weight, DTensor):
        with torch.no_grad():
            weight.copy_(data)
    else:
        weight.data = data


class Average:
    """An exponential moving average of the trained weights: a <- decay * a + (1 - decay) * weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.state = snapshot(model)
        self.decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Once an optimizer step."""
        for name, weight in trained(model).items():
            self.state[name] = spread_like(self.state[name], weight)
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
