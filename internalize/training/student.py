"""The policy and its loss as one module, as the trainer takes it.

The loss of an optimizer step is sum(weight * token loss) / action tokens of the step, or with `per = "trajectory"` the
mean over its trajectories of weight * mean token loss; neither weights nor copies with experience change a denominator.

Dimensions: `_A` action tokens, `_D` hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from internalize.config.distill import DistillConfig
from internalize.records.packed import Packed

from .head import causal_lm, head
from .losses import Anchor, Head, Objective, chunked_loss
from .scoring import PackedScorer, teacher_hidden
from .teachers import TrainingSet, TrainItem
from .together import Row, is_sharded, processes
from .weights import Average, head_with, swapped

SHARED_TOKENS = 2048  # tokens of one training pass over several items; its graph is kept until the backward pass


class PolicyWithLoss(nn.Module):
    """The policy and its loss as one module, so that what wraps it for many devices sees one forward pass."""

    accepts_loss_kwargs = True  # Trainer then passes the number of labels in the optimizer step

    def __init__(self, policy: nn.Module, data: TrainingSet, config: DistillConfig) -> None:
        super().__init__()
        self.policy = policy
        self.settings = config  # not `config`: Trainer takes that for the config of a transformers model
        self.objective = Objective(**config.divergence.model_dump())
        self._data = [data]  # in a list, so that its heads do not become submodules
        averaged = config.teacher if config.asks_teacher and config.teacher.kind == "ema" else None
        self.average = Average(policy, averaged.decay) if averaged else None
        self.is_first_step = True
        self.first_losses: dict[int, float] = {}  # item number -> its summed loss before the first update
        self.held_out_losses: list[float] = []  # before training and after every epoch
        self.without_gradient: tuple[str, ...] = ()  # trained weights that the first optimizer step leaves alone

    @property
    def data(self) -> TrainingSet:
        """What it is trained and measured on."""
        return self._data[0]

    @property
    def _no_split_modules(self) -> Any:
        """The layers that FSDP wraps one by one, which it would not see otherwise."""
        return causal_lm(self.policy)._no_split_modules  # noqa: SLF001 - it has no public name

    def measure(self, name: str, *given: Any) -> Any:
        """What the method `name` gives; inside of a forward pass where weights are whole only there."""
        return self(None, None, None, measured=(name, given)) if is_sharded(self) else getattr(self, name)(*given)

    def passes(self, row: Row) -> list[Row]:
        """The items of a row by the pass that takes them: on a CPU short neighbours share one.

        A teacher that moves has a pass of its own before each item, and several processes must make equally many. On
        CUDA a joint pass would train through the block mask of flex attention, which has never been measured.
        """
        scorer = self.data.scorer
        joins = processes() == 1 and next(self.policy.parameters()).device.type == "cpu"
        room = min(scorer.room(self.policy), SHARED_TOKENS) if joins and isinstance(scorer, PackedScorer) else 0
        groups: list[Row] = []
        left = 0
        for index, item in row:
            size, alone = len(item.packed.ids), item.teacher_input is not None
            if alone or left < size:
                groups.append(())
                left = 0 if alone else room
            groups[-1] += ((index, item),)
            left -= size
        return groups

    def forward(
        self,
        items: Row,
        labels: Tensor,
        num_items_in_batch: Tensor,
        measured: tuple[str, Sequence[Any]] | None = None,
    ) -> Any:
        """The items' share in the loss of the optimizer step, which has `num_items_in_batch` tokens or trajectories."""
        if measured:
            return getattr(self, measured[0])(*measured[1])
        del labels  # only there to be counted
        several = [item for _, item in items]
        losses = self.joint_losses(several) if len(several) > 1 else [self.token_losses(several[0])]
        shares = []
        for (index, item), losses_A in zip(items, losses, strict=True):
            loss = losses_A.sum()
            if self.is_first_step and index is not None:
                self.first_losses[index] = float(loss.detach())
            shares.append(loss * (item.weight if self.settings.per == "token" else item.weight / len(losses_A)))
        return {"loss": torch.stack(shares).sum() / num_items_in_batch}

    def token_losses(self, item: TrainItem) -> Tensor:
        """Loss at every action token: [A]."""
        teacher = self._teacher(item)
        (hidden_AD,) = self.data.scorer.score(self.policy, [item.packed])
        return self._losses(item, hidden_AD, *teacher)

    def joint_losses(self, items: Sequence[TrainItem]) -> list[Tensor]:
        """`token_losses` of items whose teacher does not move, from one pass."""
        hidden = self.data.scorer.score(self.policy, [item.packed for item in items])
        return [self._losses(item, own_AD, *self._teacher(item)) for item, own_AD in zip(items, hidden, strict=True)]

    def _losses(
        self, item: TrainItem, hidden_AD: Tensor, teacher_AD: Tensor | None, teacher_head: Head | None
    ) -> Tensor:
        device, anchor = hidden_AD.device, None
        if item.anchor_AD is not None:
            anchor_head = self.data.anchor_head or head(self.policy)
            anchor = Anchor(item.anchor_AD.to(device), anchor_head, self.settings.kl_anchor)
        return chunked_loss(
            hidden_AD,
            head(self.policy),
            item.packed.targets.to(device),
            Objective("sft") if teacher_AD is None else replace(self.objective, failed=item.weight < 0),
            teacher_TD=None if teacher_AD is None else teacher_AD.to(device),
            teacher_head=teacher_head,
            anchor=anchor,
        )

    def _teacher(self, item: TrainItem) -> tuple[Tensor | None, Head | None]:
        """The teacher's hidden states [A, D] and head at this optimizer step; no states: cross-entropy."""
        if item.teacher_input is None:
            return item.teacher_AD, self.data.teacher_head
        state = self.average.state if self.average else None
        # Autocast keeps its casts of weights: without clearing, the student would train with casts of the teacher's.
        torch.clear_autocast_cache()
        with swapped(self.policy, state):
            teacher_AD = teacher_hidden(self.policy, item.teacher_input, self.data.scorer)
        torch.clear_autocast_cache()
        return teacher_AD, head_with(self.policy, state) if state is not None else None

    def teacher_states(self, packed: Packed) -> Tensor:
        """Hidden states [A, D] under the weights of now."""
        return teacher_hidden(self.policy, packed, self.data.scorer)

    @torch.no_grad()
    def total(self, item: TrainItem) -> float:
        """Summed token losses with the weights of now."""
        return float(self.token_losses(item).sum())

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean over the held-out action tokens of the divergence at full support, or of -log q without one, in nats."""
        total, tokens = 0.0, 0
        full = Objective("sft" if self.settings.signed else self.objective.kind, self.objective.alpha)
        for item in self.data.held_out:
            # In evaluation mode, whatever mode the student trains in.
            hidden_AD = teacher_hidden(self.policy, item.packed, self.data.scorer)
            teacher_AD = None if item.teacher_AD is None else item.teacher_AD.to(hidden_AD.device)
            ids_A, output = item.packed.targets.to(hidden_AD.device), head(self.policy)
            losses_A = chunked_loss(
                hidden_AD, output, ids_A, full, teacher_TD=teacher_AD, teacher_head=self.data.teacher_head
            )
            total, tokens = total + float(losses_A.sum()), tokens + len(ids_A)
        return total / tokens

    def train(self, mode: bool = True) -> PolicyWithLoss:  # noqa: FBT001, FBT002 - torch's signature
        """Training mode; without `dropout` the policy stays in evaluation mode, in which it acts and is scored.

        That also turns off what else a model draws at random while it trains: dropped layers, noise of routers.
        """
        super().train(mode)
        if mode and not self.settings.dropout:
            self.policy.eval()
            for layer in self._checkpointed():
                layer.training = True  # else transformers keeps its activations
        return self

    def gradient_checkpointing_enable(self, **options: Any) -> None:
        """What Trainer calls for the argument `gradient_checkpointing`."""
        policy: Any = self.policy
        policy.gradient_checkpointing_enable(**options)
        for layer in self._checkpointed():
            if not self.settings.dropout:
                layer._gradient_checkpointing_func = _in_eval(layer, layer._gradient_checkpointing_func)  # noqa: SLF001

    def _checkpointed(self) -> list[Any]:
        layers = [layer for layer in self.policy.modules() if isinstance(layer, GradientCheckpointingLayer)]
        return [layer for layer in layers if layer.gradient_checkpointing]

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss has not improved for `early_stop` epochs."""
        patience, losses = self.settings.early_stop, self.held_out_losses
        return 0 < patience < len(losses) and losses.index(min(losses)) < len(losses) - patience


def _in_eval(layer: nn.Module, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
    """`checkpoint` with the layer in evaluation mode inside, forward and when the backward pass runs it again."""

    def checkpointed(forward: Callable[..., Any], *args: Any) -> Any:
        def evaluated(*inner: Any) -> Any:
            layer.training = False
            try:
                return forward(*inner)
            finally:
                layer.training = True

        return checkpoint(evaluated, *args)

    return checkpointed
