"""On-Policy Self-Distillation: the policy before training scores the student's own samples.

The paper's later version clips the contribution of each vocabulary entry to the divergence; this does not.
"""

from internalize.config.regime import Algorithm, ForwardKL, FrozenTeacher, StudentPlays

OPSD = Algorithm(
    paper="arXiv 2601.18734",
    generator=StudentPlays(refresh=4),
    divergence=ForwardKL(),
    filter="none",
    teacher=FrozenTeacher(),
)
