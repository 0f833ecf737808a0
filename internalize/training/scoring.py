"""The packed scorer: hidden states at the positions that predict action tokens, for student and teacher.

Step-wise experience gives every step a context of its own, so a plain teacher pass would encode the history once a
step. Here the clean history (the trunk) runs once, and each step's branch (hint and action) attends to the trunk up to
its fork and to itself: values and gradients are those of separate passes, for a fraction of the tokens. Where a chat
template rewrites earlier turns, the student's contexts are branches too. `attention` tells the model which
positions attend to which.

Row i of student and teacher predicts the same action token. Positions of a branch continue from its fork.

Dimensions: `_T` packed tokens, `_A` action tokens, `_D` hidden size, `_V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from internalize.errors import DataError
from internalize.inference.renderer import common_prefix
from internalize.interfaces import Scorer
from internalize.records import ActionSpan, DistillExample
from internalize.records.packed import Packed, Segment

from .attention import Layout, switch_on
from .head import backbone, causal_lm, head

Branch = tuple[int, Sequence[int], Sequence[int]]  # fork, ids in place of the trunk after it, action ids

PASS_TOKENS = 8192  # tokens of one teacher pass over several trajectories
CPU_WORK = 4e9  # on a CPU a pass of fewer operations than this costs more in calls than in arithmetic


def pack(example: DistillExample) -> Packed:
    """The teacher's side of an example: its global prompt if it has one, and every step's branch."""
    ids, spans = example.token_ids, example.spans
    if example.rewritten:
        contexts = [(*ids[s.origin : s.fork], *s.branch) if s.branch else ids[s.origin : s.start] for s in spans]
        return _pack_contexts(contexts, ids, spans)
    trunk, shift = ids, 0
    if example.teacher_prompt:
        trunk = example.teacher_prompt + ids[example.prompt_length :]
        shift = len(example.teacher_prompt) - example.prompt_length
    forks = [(s.fork if s.branch else s.start) + shift for s in spans]
    return pack_branches(trunk, [(fork, s.branch, ids[s.start : s.end]) for fork, s in zip(forks, spans, strict=True)])


def pack_clean(token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Packed:
    """The student's side, without experience: positions `start - 1` to `end - 2` of every span predict its action."""
    if any(span.origin for span in spans):
        return _pack_contexts([token_ids[span.origin : span.start] for span in spans], token_ids, spans)
    return pack_branches(token_ids, [(span.start, (), token_ids[span.start : span.end]) for span in spans])


def _pack_contexts(contexts: Sequence[Sequence[int]], token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Packed:
    """Contexts that do not continue each other, as forks from the last clean one, which shares most with the others."""
    last = spans[-1]
    trunk = token_ids[last.origin : last.end]
    branches = []
    for context, span in zip(contexts, spans, strict=True):
        fork = common_prefix(context, trunk[: last.start - last.origin])
        branches.append((fork, context[fork:], token_ids[span.start : span.end]))
    return pack_branches(trunk, branches)


def pack_branches(token_ids: Sequence[int], branches: Sequence[Branch]) -> Packed:
    """Pack any number of branches onto one trunk, with rows in the order of the branches.

    A branch without ids whose action is already in the trunk adds no tokens. Tokens that predict nothing (the tail of
    the trunk, the last token of an action) are left out. Raises DataError for a fork outside the trunk.
    """
    in_trunk = []
    for fork, hint, action in branches:
        if not 1 <= fork <= len(token_ids):
            raise DataError(f"a branch forks at token {fork} of a trajectory with {len(token_ids)} tokens")
        in_trunk.append(not hint and list(token_ids[fork : fork + len(action)]) == list(action))
    inside = list(zip(branches, in_trunk, strict=True))
    trunk = max((fork + (max(len(action) - 1, 0) if flat else 0) for (fork, _, action), flat in inside), default=0)
    ids, positions = list(token_ids[:trunk]), list(range(trunk))
    segments = [Segment(0, trunk)]
    rows: list[int] = []
    for (fork, hint, action), flat in inside:
        tail = [] if flat else [*hint, *action[:-1]]
        second = fork if flat else len(ids) + len(hint)  # position of the first action token, which predicts the next
        rows += [second - 1 if hint else fork - 1, *range(second, second + len(action) - 1)][: len(action)]
        if tail:
            segments.append(Segment(len(ids), len(ids) + len(tail), 0, fork))
        ids += tail
        positions += range(fork, fork + len(tail))
    targets = [token for _, _, action in branches for token in action]
    return Packed(_long(ids), _long(positions), tuple(segments), _long(rows), _long(targets))


def _long(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def join(packs: Sequence[Packed]) -> Packed:
    """Several packs as one pass without attention between them and without padding; positions start at 0 in each."""
    segments: list[Segment] = []
    rows, offset = [], 0
    for packed in packs:
        rows.append(packed.rows + offset)
        segments += [Segment(s.start + offset, s.end + offset, s.trunk + offset, s.reach) for s in packed.segments]
        offset += len(packed.ids)
    ids, targets = torch.cat([packed.ids for packed in packs]), torch.cat([packed.targets for packed in packs])
    return Packed(ids, torch.cat([p.position_ids for p in packs]), tuple(segments), torch.cat(rows), targets)


def hidden_states(model: nn.Module, packed: Packed) -> Tensor:
    """Last hidden states at the predicting positions: [A, D], on the model's device, with gradients."""
    trunk = backbone(model)
    weight = next(trunk.parameters())
    layout: dict[str, Any] = {}
    if not packed.plain:
        switch_on(causal_lm(model))
        unused = torch.empty(1, 1, 1, 1, device=weight.device)  # with four dimensions transformers makes no mask
        positions = packed.position_ids[None].to(weight.device)
        layout = {"layout": Layout(packed.segments, weight), "attention_mask": unused, "position_ids": positions}
    output = trunk(
        input_ids=packed.ids[None].to(weight.device),
        use_cache=False,
        **layout,
    )
    rows_AD: Tensor = output.last_hidden_state[0, packed.rows.to(weight.device)]
    return rows_AD


def student_hidden(model: nn.Module, token_ids: Sequence[int], spans: Sequence[ActionSpan]) -> Tensor:
    """Hidden states that predict every action token of the clean sequence: [A, D]."""
    return hidden_states(model, pack_clean(token_ids, spans))


class PackedScorer:
    """`interfaces.Scorer` in one pass over trunk and branches, for models whose attention can be replaced.

    Neighbours share a pass while they have at most `pass_tokens` tokens together. None = `PASS_TOKENS` on CUDA, where a
    short pass leaves most of the device idle, and on a CPU as many as a small model needs for `CPU_WORK`.
    """

    def __init__(self, pass_tokens: int | None = None) -> None:
        self._pass_tokens = pass_tokens

    def room(self, model: nn.Module) -> int:
        """Tokens that packs may have together to share a pass."""
        if self._pass_tokens is not None:
            return self._pass_tokens
        weights = list(model.parameters())
        on_gpu = weights[0].device.type == "cuda"
        return PASS_TOKENS if on_gpu else int(CPU_WORK / (2 * sum(weight.numel() for weight in weights)))

    def score(self, model: nn.Module, packs: Sequence[Packed]) -> Iterator[Tensor]:
        """Last hidden states at the positions that predict the action tokens of each of `packs`: [A, D]."""
        most = self.room(model)
        groups: list[list[Packed]] = []
        room = 0
        for packed in packs:
            room -= len(packed.ids)
            if room < 0:
                groups.append([])
                room = most - len(packed.ids)
            groups[-1].append(packed)
        for group in groups:
            hidden_AD = hidden_states(model, join(group) if len(group) > 1 else group[0])
            yield from torch.split(hidden_AD, [len(packed.targets) for packed in group])


PACKED = PackedScorer()


@torch.no_grad()
def teacher_states(model: nn.Module, packs: Sequence[Packed], scorer: Scorer = PACKED) -> Iterator[Tensor]:
    """Hidden states [A, D] of each of `packs` in evaluation mode and without gradients, on the model's device."""
    training = model.training  # train() would set all layers to one mode, but layers may differ
    if training:
        model.eval()
    try:
        yield from scorer.score(model, packs)
    finally:
        if training:
            model.train()


def teacher_hidden(model: nn.Module, packed: Packed, scorer: Scorer = PACKED) -> Tensor:
    """`teacher_states` of one pack: [A, D]."""
    (hidden_AD,) = teacher_states(model, [packed], scorer)
    return hidden_AD


def example_logits(model: nn.Module, example: DistillExample, scorer: Scorer = PACKED) -> Tensor:
    """Float32 logits at the action tokens: [A, V] of the student's side and [A, V] of the teacher's side."""
    # The teacher's side first: scoring branches may replace the attention of the other pass too.
    teacher_AD, clean_AD = scorer.score(model, [pack(example), pack_clean(example.token_ids, example.spans)])
    logits: Tensor = head(model)(torch.cat([clean_AD, teacher_AD]))
    return logits.float()
