"""Invariant 5: teacher and student predict the same action tokens at the same positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

from internalize.records.packed import Packed
from internalize.training.attention import visible
from internalize.training.scoring import join, pack, pack_clean, student_hidden, teacher_hidden
from tests.trajectories import random_example


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 8), hint=st.sampled_from(["stepwise", "global", "none"]))
def test_rows_and_targets_agree(seed: int, steps: int, hint: str) -> None:
    example = random_example(seed, steps=steps, hint=hint)
    teacher, student = pack(example), pack_clean(example.token_ids, example.spans)
    actions = [token for span in example.spans for token in example.token_ids[span.start : span.end]]
    assert teacher.targets.tolist() == student.targets.tolist() == actions
    assert student.rows.tolist() == [place for span in example.spans for place in range(span.start - 1, span.end - 1)]
    lengths = [span.end - span.start for span in example.spans]
    for packed in (teacher, student):  # after the first row of an action, row and input token go in step
        for rows, targets in zip(packed.rows.split(lengths), packed.targets.split(lengths), strict=True):
            assert packed.ids[rows[1:]].tolist() == targets[:-1].tolist()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 8), others=st.integers(0, 2))
def test_a_branch_sees_its_history_itself_and_nothing_else(seed: int, steps: int, others: int) -> None:
    packed = join([pack(random_example(seed + number, steps=steps)) for number in range(others + 1)])
    assert [segment.start for segment in packed.segments[1:]] == [segment.end for segment in packed.segments[:-1]]
    predicate = visible(packed.segments, torch.device("cpu"))
    order = torch.arange(len(packed.ids))
    seen = predicate(None, None, order[:, None], order[None, :])
    for segment in packed.segments:
        for row in range(segment.start, segment.end):
            positions = packed.position_ids[seen[row]].tolist()
            assert positions == list(range(packed.position_ids[row] + 1))  # every position before it exactly once
            blocks = {block_of(packed, place) for place in seen[row].nonzero().flatten().tolist()}
            assert blocks <= {block_of(packed, segment.trunk), block_of(packed, row)}


def block_of(packed: Packed, place: int) -> int:
    return next(number for number, segment in enumerate(packed.segments) if segment.start <= place < segment.end)


@pytest.mark.parametrize("seed", range(4))
def test_without_experience_the_teacher_is_the_student(model: LlamaForCausalLM, seed: int) -> None:
    example = random_example(seed, hint="none")
    student = student_hidden(model, example.token_ids, example.spans)
    assert torch.equal(teacher_hidden(model, pack(example)), student)
