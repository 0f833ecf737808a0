"""Generalized Knowledge Distillation: a Jensen-Shannon divergence on the student's own samples.

The paper mixes in fixed data by a share lambda, here 1 (none), and distils a larger model, here the policy itself.
"""

from internalize.config.regime import Algorithm, FrozenTeacher, JensenShannon, StudentPlays

GKD = Algorithm(
    paper="arXiv 2306.13649",
    generator=StudentPlays(refresh=4),
    divergence=JensenShannon(alpha=0.5),
    filter="none",
    teacher=FrozenTeacher(),
)
