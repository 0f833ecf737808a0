"""Group relative policy optimization: a clipped policy gradient, attempts against their task's mean, no experience.

The paper samples 64 answers a question and adds a KL to the reference; `distill.kl_anchor` is that, and off by default.
"""

from internalize.config.regime import Algorithm, FrozenTeacher, PolicyGradient, StudentPlays

GRPO = Algorithm(
    paper="arXiv 2402.03300",
    generator=StudentPlays(),
    divergence=PolicyGradient(),
    filter="advantage",
    teacher=FrozenTeacher(),  # not used by policy_gradient
    attempts=8,
)
