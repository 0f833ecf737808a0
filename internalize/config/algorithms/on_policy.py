"""On-policy internalization, L_on in its paper: the regime that collapsed there.

The student plays without experience, and the teacher, which sees the experience, scores the student's own tokens.
"""

from internalize.config.regime import Algorithm, FrozenTeacher, ReverseKL, StudentPlays

ON_POLICY = Algorithm(
    paper="arXiv 2606.04703",
    generator=StudentPlays(),
    divergence=ReverseKL(),
    filter="none",
    teacher=FrozenTeacher(),
)
