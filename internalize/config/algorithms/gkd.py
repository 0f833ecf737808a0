"""Generalized Knowledge Distillation: a Jensen-Shannon divergence on the student's own samples.

The paper has a share lambda of student samples beside fixed data, here 1 (no fixed data), and distills a larger model,
here the policy itself.
"""

from internalize.config.regime import Algorithm, FrozenTeacher, JensenShannon, StudentPlays

GKD = Algorithm(
    paper="arXiv 2306.13649",
    generator=StudentPlays(refresh=4),
    divergence=JensenShannon(alpha=0.5),
    filter="none",
    teacher=FrozenTeacher(),
)
