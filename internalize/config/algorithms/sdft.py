"""Self-Distillation Fine-Tuning: a slow average of the student's weights scores the student's own samples.

Version 1 of the paper derives the reverse KL; its results were made with the forward KL, which is used here. The
paper samples anew at every step, this algorithm at every fourth.
"""

from internalize.config.regime import Algorithm, AveragedTeacher, ForwardKL, StudentPlays

SDFT = Algorithm(
    paper="arXiv 2601.19897",
    generator=StudentPlays(refresh=4),
    divergence=ForwardKL(),
    filter="none",
    teacher=AveragedTeacher(decay=0.99),
)
