"""Self-Distillation Fine-Tuning: the student's own samples under a teacher that follows it slowly.

Version 1 of the paper derives the reverse KL; its results were made with the forward KL, which this is. The paper
samples anew at every step, this every four.
"""

from internalize.config.regime import Algorithm, AveragedTeacher, ForwardKL, StudentPlays

SDFT = Algorithm(
    paper="arXiv 2601.19897",
    generator=StudentPlays(refresh=4),
    divergence=ForwardKL(),
    filter="none",
    teacher=AveragedTeacher(decay=0.99),
)
