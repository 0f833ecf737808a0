"""Invariant 6: KL directions match hand-worked numbers; forward = KL(teacher || student)."""

from __future__ import annotations

import math

import pytest
import torch

from internalize.training.losses import Objective, divergence

# Two ids, worked by hand:
# teacher p = (1/2, 1/2), student q = (1/4, 3/4)
#   KL(p || q) = 1/2 ln 2 + 1/2 ln(2/3) = 1/2 ln(4/3)
#   KL(q || p) = 1/4 ln(1/2) + 3/4 ln(3/2)
TEACHER = torch.tensor([[0.5, 0.5]]).log()
STUDENT = torch.tensor([[0.25, 0.75]]).log()


def test_forward_is_the_teacher_to_the_student() -> None:
    assert divergence(STUDENT, TEACHER, "forward").item() == pytest.approx(0.5 * math.log(4 / 3), abs=1e-6)


def test_reverse_is_the_student_to_the_teacher() -> None:
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert divergence(STUDENT, TEACHER, "reverse").item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.8])
def test_js_mixes_the_two_by_the_teachers_share(alpha: float) -> None:
    """m = alpha p + (1 - alpha) q; alpha KL(p || m) + (1 - alpha) KL(q || m)."""
    m = [alpha * 0.5 + (1 - alpha) * 0.25, alpha * 0.5 + (1 - alpha) * 0.75]
    to_teacher = 0.5 * math.log(0.5 / m[0]) + 0.5 * math.log(0.5 / m[1])
    to_student = 0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(0.75 / m[1])
    expected = alpha * to_teacher + (1 - alpha) * to_student
    assert divergence(STUDENT, TEACHER, Objective("js", alpha)).item() == pytest.approx(expected, abs=1e-6)


def test_sampled_is_the_log_ratio_of_student_to_teacher() -> None:
    both, ids = (STUDENT.expand(2, 2), TEACHER.expand(2, 2)), torch.tensor([0, 1])
    got = divergence(*both, Objective("reverse", support="sampled"), ids)
    assert got.tolist() == pytest.approx([math.log(0.25 / 0.5), math.log(0.75 / 0.5)], abs=1e-6)


def test_forward_punishes_a_student_that_misses_a_mode_and_reverse_one_that_invents_one() -> None:
    even, sure = torch.tensor([[0.0, 0.0]]), torch.tensor([[10.0, 0.0]])
    assert divergence(sure, even, "forward") > 5 * divergence(sure, even, "reverse")
    assert divergence(even, sure, "reverse") > 5 * divergence(even, sure, "forward")


def test_gradient_of_forward_kl_is_student_minus_teacher() -> None:
    student = STUDENT.clone().requires_grad_()
    divergence(student, TEACHER, "forward").sum().backward()
    torch.testing.assert_close(student.grad, STUDENT.exp() - TEACHER.exp())
