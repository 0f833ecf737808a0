"""Hidden states at the positions that predict action tokens, for student and teacher.

Step-wise experience gives every step its own context, so a naive teacher pass encodes the history
once a step. Here the clean history (the trunk) runs once and each step's branch (hint and action)
attends to the trunk up to its fork and to itself: the values and gradients are those of separate
passes, in a fraction of the tokens. Left out: attention implementations without dense masks
(flash, flex), sliding windows, and heads that rescale or cap their logits.

What must not change: row i of student and teacher predicts the same action token, in step order;
position ids of a branch continue from its fork; nothing attends across branches.

Dimensions: `_T` packed tokens, `_A` action tokens, `_D` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from internalize.errors import DataError
from internalize.records import ActionSpan, DistillExample

Branch = tuple[int, Sequence[int], Sequence[int]]  # fork, ids seen instead of the trunk after it, action ids


@dataclass(frozen=True)
class Packed:
    """One trunk and its branches in one sequence. Integer tensors, all on the CPU."""

    ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    block: Tensor  # [T] 0 in the trunk, 1, 2, ... in the branches
    reach: Tensor  # [T] how many trunk tokens a token of a branch sees
    rows: Tensor  # [A] position that predicts each action token
    targets: Tensor  # [A] the action tokens

    def mask(self) -> Tensor | None:
        """[T, T] bool, True = row attends to column; None = plain causal. Built when asked: it is quadratic."""
        if not bool(self.block.any()):
            return None
        order = torch.arange(len(self.ids))
        own = self.block[:, None] == self.block[None, :]
        trunk = (self.block[None, :] == 0) & (order[None, :] < self.reach[:, None])
        return (order[None, :] <= order[:, None]) & (own | trunk)


def pack(example: DistillExample) -> Packed:
    """The teacher's side of an example: its global prompt if it has one, and every step's branch."""
    ids, shift = example.token_ids, 0
    if example.teacher_prompt:
        ids = example.teacher_prompt + ids[example.prompt_length :]
        shift = len(example.teacher_prompt) - example.prompt_length
    return pack_branches(ids, [_teacher_branch(example, span, shift) for span in example.spans])


def pack_clean(token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Packed:
    """The student's side: the clean ids, rows `start - 1` to `end - 2` of every span."""
    return pack_branches(token_ids, [(span.start, (), token_ids[span.start : span.end]) for span in spans])


def pack_branches(token_ids: Sequence[int], branches: Sequence[Branch]) -> Packed:
    """Pack any number of branches `(fork, branch ids, action ids)` onto one trunk, rows in their order.

    A branch without ids whose action is what the trunk says there costs nothing extra. Tokens that
    predict nothing (the tail of the trunk, the last token of an action) are not run.
    Raises DataError for a fork outside the trunk.
    """
    inline = [_is_inline(token_ids, branch) for branch in branches]
    ends = [
        fork + (max(len(action) - 1, 0) if flat else 0)
        for (fork, _, action), flat in zip(branches, inline, strict=True)
    ]
    trunk = max(ends, default=0)
    ids, positions = list(token_ids[:trunk]), list(range(trunk))
    block, reach = [0] * trunk, [0] * trunk
    rows: list[int] = []
    for number, ((fork, hint, action), flat) in enumerate(zip(branches, inline, strict=True), start=1):
        tail = [] if flat else [*hint, *action[:-1]]
        second = fork if flat else len(ids) + len(hint)  # where the first action token stands and predicts the next
        rows += [second - 1 if hint else fork - 1, *range(second, second + len(action) - 1)][: len(action)]
        ids += tail
        positions += range(fork, fork + len(tail))
        block += [number] * len(tail)
        reach += [fork] * len(tail)
    targets = [token for _, _, action in branches for token in action]
    return Packed(*(torch.tensor(values, dtype=torch.long) for values in (ids, positions, block, reach, rows, targets)))


def hidden_states(model: nn.Module, packed: Packed) -> Tensor:
    """Last hidden states at the predicting positions: [A, D], on the model's device, with gradients."""
    trunk = backbone(model)
    weight = next(trunk.parameters())
    mask = packed.mask()
    bias = None  # additive, since both eager and sdpa attention understand it
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=weight.dtype).masked_fill_(~mask, torch.finfo(weight.dtype).min)
        bias = bias[None, None].to(weight.device)
    output = trunk(
        input_ids=packed.ids[None].to(weight.device),
        position_ids=packed.position_ids[None].to(weight.device),
        attention_mask=bias,
        use_cache=False,
    )
    rows_AD: Tensor = output.last_hidden_state[0, packed.rows.to(weight.device)]
    return rows_AD


def student_hidden(model: nn.Module, token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Tensor:
    """Hidden states that predict every action token of the clean sequence: [A, D]."""
    return hidden_states(model, pack_clean(token_ids, spans))


@torch.no_grad()
def teacher_hidden(model: nn.Module, packed: Packed) -> Tensor:
    """The same for the teacher: [A, D], in eval mode and without gradients."""
    training = model.training
    model.eval()
    try:
        return hidden_states(model, packed)
    finally:
        model.train(training)


def backbone(model: nn.Module) -> Any:
    """The transformer below the language-model head, with its adapters if it has any."""
    return _causal_lm(model).base_model


def head(model: nn.Module) -> nn.Module:
    """The language-model head."""
    output: nn.Module = _causal_lm(model).get_output_embeddings()
    return output


def _causal_lm(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _teacher_branch(example: DistillExample, span: ActionSpan, shift: int) -> Branch:
    fork = span.fork if span.branch else span.start
    return fork + shift, span.branch, example.token_ids[span.start : span.end]


def _is_inline(token_ids: Sequence[int], branch: Branch) -> bool:
    fork, hint, action = branch
    if not 1 <= fork <= len(token_ids):
        raise DataError(f"a branch forks at token {fork} of a trajectory with {len(token_ids)} tokens")
    return not hint and list(token_ids[fork : fork + len(action)]) == list(action)
