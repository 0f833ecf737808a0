"""Off-policy internalization, L_off in its paper: the regime that did not collapse there.

The teacher plays with experience in its prompt, failures are rejected, and the student matches the teacher's
distributions at its action tokens without experience.
"""

from internalize.config.regime import Algorithm, ForwardKL, FrozenTeacher, TeacherPlays

OFF_POLICY = Algorithm(
    paper="arXiv 2606.04703",
    generator=TeacherPlays(),
    divergence=ForwardKL(),
    filter="success",
    teacher=FrozenTeacher(),
)
