"""Makes a fresh LoRA adapter. Layers are chosen by their kind, and the choice is tried on a copy on the meta device.

Linear layers and the stacked weights of experts are adapted. The output layer is left out, and so are routers (layers
with a forward of their own, or with one output for each of their sibling experts) and every layer that PEFT refuses or
cannot load again from a saved adapter, because PEFT renames the targets of some architectures.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from internalize.errors import UserError, first_line

from .head import backbone

_LOG = logging.getLogger(__name__)


class Targets(NamedTuple):
    """Full names of linear layers, and of stacked weights of experts."""

    layers: tuple[str, ...]
    experts: tuple[str, ...]

    def without(self, leaves: Sequence[str]) -> Targets:
        """The targets whose last name is not among `leaves`."""
        return Targets(*(tuple(n for n in names if n.rpartition(".")[2] not in leaves) for names in self))

    @property
    def leaves(self) -> list[str]:
        """The last parts of all names."""
        return sorted({name.rpartition(".")[2] for name in (*self.layers, *self.experts)})


def new_adapter(model: nn.Module, r: int, seed: int, *, experts: bool = True) -> PeftModel:
    """An adapter 'default' on the layers that PEFT can keep: alpha 2r, no dropout, without effect until trained.

    Raises UserError if nothing is left to adapt.
    """
    targets = targets_of(model)
    targets = targets if experts else targets._replace(experts=())
    refused = _refused(model, targets, r)
    chosen = targets.without(list(refused))
    if refused:
        _LOG.warning("LoRA leaves out %s (%s)", ", ".join(refused), "; ".join(sorted(set(refused.values()))))
    if not chosen.layers and not chosen.experts:
        raise UserError(f"{type(model).__name__} has no layers that LoRA can adapt; set distill.lora_r to 0")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _adapted(model, chosen, r)


def targets_of(model: nn.Module) -> Targets:
    """Every layer and stacked weight that could be adapted; in a multimodal model only those of the text part."""
    text: Any = backbone(model)
    text = getattr(text, "language_model", text)
    inside = tuple(f"{name}." if name else "" for name, module in model.named_modules() if module is text)
    layers = [
        name
        for name, module in model.named_modules()
        if name.startswith(inside) and _is_linear(module) and not _is_router(model, name, module)
    ]
    stacks = [name for name, weight in model.named_parameters() if weight.dim() == 3 and "experts" in name.split(".")]
    return Targets(tuple(layers), tuple(name for name in stacks if name.startswith(inside)))


@torch.no_grad()
def _is_linear(module: nn.Module) -> bool:
    """Whether a layer maps a tensor to a tensor; a router of the same base class returns more, or fails alone."""
    if not isinstance(module, nn.Linear | Conv1D):
        return False
    if type(module).forward in (nn.Linear.forward, Conv1D.forward):
        return True
    weight: Any = module.weight
    kind = weight.dtype if weight.is_floating_point() else torch.float32  # quantized
    try:
        shown = torch.zeros(1, module.in_features, dtype=kind, device=weight.device)
        return isinstance(module(shown), torch.Tensor)
    except Exception:  # noqa: BLE001 - the code of any model
        return False


def _is_router(model: nn.Module, name: str, module: Any) -> bool:
    experts: Any = getattr(model.get_submodule(name.rpartition(".")[0]), "experts", None)
    if experts is None or name.endswith("experts"):
        return False
    stack = next((weight for weight in experts.parameters() if weight.dim() == 3), None)
    count = len(experts) if isinstance(experts, nn.ModuleList) else None if stack is None else len(stack)
    return getattr(module, "out_features", None) == count


def _adapted(model: Any, targets: Targets, r: int) -> PeftModel:
    config = LoraConfig(
        r=r, lora_alpha=2 * r, lora_dropout=0.0, bias="none", task_type="CAUSAL_LM",
        target_modules=list(targets.layers), target_parameters=list(targets.experts) or None,
    )  # fmt: skip
    with _without_warnings():
        return get_peft_model(model, config)


def _refused(model: nn.Module, targets: Targets, r: int) -> dict[str, str]:
    """Last names that cannot be adapted, and why. All are tried together first, then one by one."""
    if not (targets.layers or targets.experts) or not (found := _problem(model, targets, r)):
        return {}
    alone = {leaf: targets.without([other for other in targets.leaves if other != leaf]) for leaf in targets.leaves}
    refused = {leaf: why for leaf, those in alone.items() if (why := _problem(model, those, r))}
    rest = targets.without(list(refused))
    while rest.leaves and (found := _problem(model, rest, r)):  # some fail only together: experts are dropped first
        leaf = (Targets((), rest.experts).leaves or rest.leaves)[0]
        refused[leaf], rest = found, rest.without([leaf])
    return refused


def _problem(model: nn.Module, targets: Targets, r: int) -> str:
    """Why PEFT cannot adapt these targets, or cannot load them after saving; "" if it can."""
    try:
        first = _adapted(_twin(model), targets, r)
        with TemporaryDirectory() as folder, _without_warnings():
            first.peft_config["default"].save_pretrained(folder)
            saved = LoraConfig.from_pretrained(folder)
            again = get_peft_model(_twin(model), saved)
    except Exception as error:  # noqa: BLE001 - PEFT raises whatever its own code meets
        return first_line(error)
    if missing := sorted({*targets.layers, *targets.experts} - adapted_names(first)):
        return f"PEFT does not adapt {missing[0]}"
    states = [get_peft_model_state_dict(twin, adapter_name="default") for twin in (first, again)]
    trained = [name for name, weight in first.named_parameters() if weight.requires_grad]
    if states[0].keys() != states[1].keys() or len(states[0]) != len(trained):
        return "PEFT would not find it again in a saved adapter"
    return ""


def adapted_names(model: PeftModel) -> set[str]:
    """Full names of the layers and stacked weights that have an adapter."""
    found = set()
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            layer = name.removeprefix("base_model.model.").replace(".base_layer", "")
            stack = getattr(module, "parameter_name", "")
            found.add(f"{layer}.{stack}" if stack else layer)
    return found


def _twin(model: Any) -> nn.Module:
    """A copy of the architecture on the meta device, which takes no memory."""
    with torch.device("meta"):
        twin: nn.Module = type(model)(copy.deepcopy(model.config))
    return twin


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence warnings of PEFT and transformers about each other, which users cannot act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
