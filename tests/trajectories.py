"""Random trajectories as plain ids, for tests of losses, scoring and training."""

from __future__ import annotations

import random

import torch
from transformers import PreTrainedModel

from internalize.records import ActionSpan, DistillExample
from internalize.training.head import head
from internalize.training.scoring import pack, teacher_hidden

VOCAB = 380


def _ids(draw: random.Random, low: int, high: int) -> list[int]:
    return [draw.randrange(3, VOCAB) for _ in range(draw.randint(low, high))]


def random_example(seed: int, *, steps: int = 3, hint: str = "stepwise") -> DistillExample:
    """Prompt, then `steps` of (action, observation). Forks lie a few tokens before the action, as in chat."""
    draw = random.Random(seed)
    ids = _ids(draw, 8, 14)
    prompt_length = len(ids)
    spans = []
    for _ in range(steps):
        action = _ids(draw, 1, 5)
        shown = hint == "stepwise" and draw.random() < 0.8
        fork = len(ids) - draw.randint(1, 3) if shown else 0
        branch = _ids(draw, 2, 6) if shown else []
        spans.append(ActionSpan(start=len(ids), end=len(ids) + len(action), fork=fork, branch=tuple(branch)))
        ids += action + _ids(draw, 3, 8)
    return DistillExample(
        trajectory_id=f"t{seed}",
        token_ids=tuple(ids),
        spans=tuple(spans),
        prompt_length=prompt_length,
        teacher_prompt=tuple(_ids(draw, 15, 25)) if hint == "global" else (),
    )


def rewritten_example(seed: int, *, steps: int = 3, hint: str = "stepwise") -> DistillExample:
    """The same under a template that shows only the last token of earlier actions: every step has its own context."""
    plain = random_example(seed, steps=steps, hint=hint)
    ids: list[int] = []
    history: list[int] = []
    spans, seen = [], 0
    for span in plain.spans:
        history += plain.token_ids[seen : span.start]
        seen, origin = span.end, len(ids)
        start, action = origin + len(history), plain.token_ids[span.start : span.end]
        fork = start - (span.start - span.fork) if span.branch else 0
        ids += [*history, *action]
        spans.append(ActionSpan(start=start, end=len(ids), fork=fork, branch=span.branch, origin=origin))
        history.append(action[-1])
    return plain.model_copy(update={"token_ids": tuple(ids), "spans": tuple(spans)})


def contexts_of(example: DistillExample, *, shown: bool) -> list[tuple[list[int], list[int]]]:
    """Context and action of every step, the teacher's (`shown`) or the student's."""
    found = []
    for span in example.spans:
        fork, branch = (span.fork, span.branch) if shown and span.branch else (span.start, ())
        found.append(
            ([*example.token_ids[span.origin : fork], *branch], list(example.token_ids[span.start : span.end]))
        )
    return found


def likely_example(model: PreTrainedModel, seed: int, **kind: str) -> DistillExample:
    """The same with actions the teacher finds likely: its best guess, token after token."""
    example = random_example(seed, **kind)
    for _ in range(max(span.end - span.start for span in example.spans)):
        best = head(model)(teacher_hidden(model, pack(example))).argmax(-1).tolist()
        ids = list(example.token_ids)
        for span in example.spans:
            for place in range(span.start, span.end):
                ids[place] = best.pop(0)
        example = example.model_copy(update={"token_ids": tuple(ids)})
    return example


def logits_one_by_one(model: torch.nn.Module, example: DistillExample) -> torch.Tensor:
    """Teacher logits [A, V] the slow way: one full forward pass a step, no mask, no packing."""
    rows = []
    for span in example.spans:
        action = list(example.token_ids[span.start : span.end])
        if example.teacher_prompt:
            context = [*example.teacher_prompt, *example.token_ids[example.prompt_length : span.start]]
        elif span.branch:
            context = [*example.token_ids[: span.fork], *span.branch]
        else:
            context = list(example.token_ids[: span.start])
        logits = model(torch.tensor([context + action])).logits[0]
        rows.append(logits[len(context) - 1 : -1])
    return torch.cat(rows)
