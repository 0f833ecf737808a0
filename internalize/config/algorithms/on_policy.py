"""On-policy internalization, L_on of its paper: the regime that collapsed there.

The student plays without experience, and the teacher, which is shown it, scores the student's own tokens.
"""

from internalize.config.regime import Algorithm, FrozenTeacher, ReverseKL, StudentPlays

ON_POLICY = Algorithm(
    paper="arXiv 2606.04703",
    generator=StudentPlays(),
    divergence=ReverseKL(),
    filter="none",
    teacher=FrozenTeacher(),
)
