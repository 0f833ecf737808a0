"""Rejection-sampling fine-tuning: cross-entropy on the policy's own successes, with no experience involved.

The paper trains a base model on 100 samples a question; this one continues from the last checkpoint with four.
"""

from internalize.config.regime import Algorithm, CrossEntropy, FrozenTeacher, StudentPlays

RFT = Algorithm(
    paper="arXiv 2308.01825",
    generator=StudentPlays(),
    divergence=CrossEntropy(),
    filter="success",
    teacher=FrozenTeacher(),  # not used by sft
    attempts=4,
)
