"""Hidden states at the positions that predict action tokens, for student and teacher.

Step-wise experience gives every step its own context, so a naive teacher pass encodes the history
once a step. Here the clean history (the trunk) runs once and each step's branch (hint and action)
attends to the trunk up to its fork and to itself: the values and gradients are those of separate
passes, in a fraction of the tokens. Where a template rewrites earlier turns, the student's contexts are branches too.
Left out: who sees whom, as a device computes it (`attention`), and heads that rescale or cap their logits.

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

from internalize.errors import DataError, UserError
from internalize.inference.renderer import common_prefix
from internalize.records import ActionSpan, DistillExample

from .attention import Layout, Segment, switch_on

Branch = tuple[int, Sequence[int], Sequence[int]]  # fork, ids seen instead of the trunk after it, action ids

PASS_TOKENS = 8192  # of a teacher's pass over several trajectories
_JOINED = ("ids", "position_ids", "targets")


@dataclass(frozen=True)
class Packed:
    """Trunks and their branches in one sequence. Integer tensors, all on the CPU."""

    ids: Tensor  # [T]
    position_ids: Tensor  # [T]
    segments: tuple[Segment, ...]  # who sees whom: every token is in one, in order
    rows: Tensor  # [A] position that predicts each action token
    targets: Tensor  # [A] the action tokens

    @property
    def plain(self) -> bool:
        """Whether ordinary causal attention is all it needs."""
        return len(self.segments) <= 1


def pack(example: DistillExample) -> Packed:
    """The teacher's side of an example: its global prompt if it has one, and every step's branch."""
    if example.rewritten:
        contexts = [_shown(example.token_ids, span) for span in example.spans]
        return _pack_contexts(contexts, example.token_ids, example.spans)
    ids, shift = example.token_ids, 0
    if example.teacher_prompt:
        ids = example.teacher_prompt + ids[example.prompt_length :]
        shift = len(example.teacher_prompt) - example.prompt_length
    return pack_branches(ids, [_teacher_branch(example, span, shift) for span in example.spans])


def pack_clean(token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Packed:
    """The student's side: the clean ids, rows `start - 1` to `end - 2` of every span."""
    if any(span.origin for span in spans):
        return _pack_contexts([token_ids[span.origin : span.start] for span in spans], token_ids, spans)
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
    segments = [Segment(0, trunk)]
    rows: list[int] = []
    for (fork, hint, action), flat in zip(branches, inline, strict=True):
        tail = [] if flat else [*hint, *action[:-1]]
        second = fork if flat else len(ids) + len(hint)  # where the first action token stands and predicts the next
        rows += [second - 1 if hint else fork - 1, *range(second, second + len(action) - 1)][: len(action)]
        if tail:
            segments.append(Segment(len(ids), len(ids) + len(tail), 0, fork))
        ids += tail
        positions += range(fork, fork + len(tail))
    targets = [token for _, _, action in branches for token in action]
    return Packed(_long(ids), _long(positions), tuple(segments), _long(rows), _long(targets))


def join(packs: Sequence[Packed]) -> Packed:
    """Several in one pass, none seeing another: no padding, positions start again at 0 in each."""
    segments: list[Segment] = []
    rows, offset = [], 0
    for packed in packs:
        rows.append(packed.rows + offset)
        segments += [Segment(s.start + offset, s.end + offset, s.trunk + offset, s.reach) for s in packed.segments]
        offset += len(packed.ids)
    ids, positions, targets = (torch.cat([getattr(p, name) for p in packs]) for name in _JOINED)
    return Packed(ids, positions, tuple(segments), torch.cat(rows), targets)


def hidden_states(model: nn.Module, packed: Packed) -> Tensor:
    """Last hidden states at the predicting positions: [A, D], on the model's device, with gradients."""
    trunk = backbone(model)
    weight = next(trunk.parameters())
    layout: dict[str, Any] = {}
    if not packed.plain:
        switch_on(_causal_lm(model))
        unread = torch.empty(1, 1, 1, 1, device=weight.device)  # in four dimensions, so that no [T, T] mask is built
        layout = {"layout": Layout(packed.segments, weight), "attention_mask": unread}
    output = trunk(
        input_ids=packed.ids[None].to(weight.device),
        position_ids=packed.position_ids[None].to(weight.device),
        use_cache=False,
        **layout,
    )
    rows_AD: Tensor = output.last_hidden_state[0, packed.rows.to(weight.device)]
    return rows_AD


def student_hidden(model: nn.Module, token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Tensor:
    """Hidden states that predict every action token of the clean sequence: [A, D]."""
    return hidden_states(model, pack_clean(token_ids, spans))


@torch.no_grad()
def teacher_hidden(model: nn.Module, packed: Packed) -> Tensor:
    """The same for the teacher: [A, D], in eval mode and without gradients."""
    if not model.training:  # train() and eval() reach every layer, and some may be in a mode of their own
        return hidden_states(model, packed)
    model.eval()
    try:
        return hidden_states(model, packed)
    finally:
        model.train()


def teacher_answers(model: nn.Module, packs: Sequence[Packed], most: int | None = None) -> list[Tensor]:
    """`teacher_hidden` of each, on the CPU; passes of up to `most` tokens hold several.

    None = `PASS_TOKENS` on CUDA, where a short pass leaves most of the device idle, and one at a time on a CPU,
    where joining gains nothing.
    """
    most = (PASS_TOKENS if next(model.parameters()).device.type == "cuda" else 0) if most is None else most
    answers: list[Tensor] = []
    for group in _groups(packs, most):
        hidden_AD = teacher_hidden(model, join(group) if len(group) > 1 else group[0])
        answers += torch.split(hidden_AD.cpu(), [len(packed.targets) for packed in group])
    return answers


def example_logits(model: nn.Module, example: DistillExample) -> Tensor:
    """Logits at the action tokens in float32: [A, V] of the student's side, then [A, V] of the teacher's."""
    shown_AD = hidden_states(model, pack(example))  # first: it exchanges the attention that the other pass uses too
    clean_AD = student_hidden(model, example.token_ids, example.spans)
    logits: Tensor = head(model)(torch.cat([clean_AD, shown_AD]))
    return logits.float()


def _groups(packs: Sequence[Packed], most: int) -> list[list[Packed]]:
    """Neighbours together while they have no more than `most` tokens."""
    groups: list[list[Packed]] = []
    room = 0
    for packed in packs:
        room -= len(packed.ids)
        if room < 0:
            groups.append([])
            room = most - len(packed.ids)
        groups[-1].append(packed)
    return groups


def backbone(model: nn.Module) -> Any:
    """The transformer below the language-model head, with its adapters if it has any."""
    return _causal_lm(model).base_model


def head(model: nn.Module) -> nn.Module:
    """The language-model head."""
    output: nn.Module = _causal_lm(model).get_output_embeddings()
    return output


@torch.no_grad()
def require_plain_head(model: nn.Module) -> None:
    """Raises UserError for a model that scales or caps what its head says: losses here are on the head's own logits."""
    whole, output = _causal_lm(model), head(model)
    ids = torch.arange(min(4, int(next(output.parameters()).shape[0])), device=next(whole.parameters()).device)[None]
    said = whole(input_ids=ids, use_cache=False).logits.float()
    own = output(backbone(model)(input_ids=ids, use_cache=False).last_hidden_state).float()
    capped = getattr(whole.config, "final_logit_softcapping", None)  # hardly moves small logits
    if capped or not torch.allclose(said, own, rtol=1e-3, atol=1e-3 * float(own.abs().max())):
        raise UserError(f"{type(whole).__name__} scales or caps its logits, which distillation does not do")


def _causal_lm(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _teacher_branch(example: DistillExample, span: ActionSpan, shift: int) -> Branch:
    fork = span.fork if span.branch else span.start
    return fork + shift, span.branch, example.token_ids[span.start : span.end]


def _shown(token_ids: Sequence[int], span: ActionSpan) -> Sequence[int]:
    """The teacher's context of a step."""
    return (*token_ids[span.origin : span.fork], *span.branch) if span.branch else token_ids[span.origin : span.start]


def _pack_contexts(contexts: Sequence[Sequence[int]], token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Packed:
    """Contexts that are no prefixes of each other: all fork from the last clean one, which they share most with."""
    last = spans[-1]
    trunk = token_ids[last.origin : last.end]
    branches = []
    for context, span in zip(contexts, spans, strict=True):
        fork = common_prefix(context, trunk[: last.start - last.origin])
        branches.append((fork, context[fork:], token_ids[span.start : span.end]))
    return pack_branches(trunk, branches)


def _long(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _is_inline(token_ids: Sequence[int], branch: Branch) -> bool:
    fork, hint, action = branch
    if not 1 <= fork <= len(token_ids):
        raise DataError(f"a branch forks at token {fork} of a trajectory with {len(token_ids)} tokens")
    return not hint and list(token_ids[fork : fork + len(action)]) == list(action)
