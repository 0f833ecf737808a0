"""The switches of a distillation regime, and the record of a named algorithm, which sets them.

A switch with settings of its own is a table with a `kind`; a bare word is that kind with its defaults. Each kind has
only the keys that have a meaning for it, so that most contradictions cannot be written.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

_SUPPORT: Any = Field("full", description="Vocabulary compared: all of it, or the top_k likeliest tokens and a rest.")
_TOP_K: Any = Field(64, ge=1, le=1_000_000, description="Tokens compared one by one with support = 'topk'.")


class Section(BaseModel):
    """Frozen base of every section of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def listed(value: object) -> object:
    """A single string as a list of one, which a recipe may write so."""
    return (value,) if isinstance(value, str) else value


class TeacherPlays(Section):
    """Off-policy: the policy plays the training episodes with experience in its prompt."""

    kind: Literal["teacher"] = "teacher"


class StudentPlays(Section):
    """On-policy: the policy plays them without experience; only the teacher sees it when it scores them."""

    kind: Literal["student"] = "student"
    refresh: int = Field(0, ge=0, le=100_000, description="Optimizer steps between fresh episodes; 0 = play once.")


class ForwardKL(Section):
    """KL(teacher || student)."""

    kind: Literal["forward"] = "forward"
    support: Literal["full", "topk"] = _SUPPORT
    top_k: int = _TOP_K


class ReverseKL(Section):
    """KL(student || teacher); support 'sampled' estimates it from the sampled token alone."""

    kind: Literal["reverse"] = "reverse"
    support: Literal["full", "topk", "sampled"] = _SUPPORT
    top_k: int = _TOP_K


class JensenShannon(Section):
    """The generalized Jensen-Shannon divergence; near alpha = 0 like the forward KL, near 1 like the reverse one."""

    kind: Literal["js"] = "js"
    alpha: float = Field(0.5, gt=0, lt=1, description="Teacher's share of the mixture that both are compared with.")
    support: Literal["full", "topk"] = _SUPPORT
    top_k: int = _TOP_K


class CrossEntropy(Section):
    """Cross-entropy with the action tokens: supervised fine-tuning, without a teacher."""

    kind: Literal["sft"] = "sft"


class PolicyGradient(Section):
    """Reinforcement learning with a clipped ratio (arXiv 1707.06347, 2402.03300), without a teacher."""

    kind: Literal["policy_gradient"] = "policy_gradient"
    clip: float = Field(0.2, gt=0, lt=1, description="How far a token's probability may move before it is left alone.")


class FrozenTeacher(Section):
    """The weights at the start of the iteration."""

    kind: Literal["frozen"] = "frozen"


class LiveTeacher(Section):
    """The student's weights at this optimizer step."""

    kind: Literal["live"] = "live"


class AveragedTeacher(Section):
    """An exponential moving average of the student's weights."""

    kind: Literal["ema"] = "ema"
    decay: float = Field(0.99, ge=0, lt=1, description="Share of itself that the average keeps an optimizer step.")


class OtherTeacher(Section):
    """Another model with the policy's tokenizer."""

    kind: Literal["model"] = "model"
    source: str = Field(min_length=1, description="The model, named as in model.source.")


Generator = Annotated[TeacherPlays | StudentPlays, Field(discriminator="kind")]
Divergence = Annotated[
    ForwardKL | ReverseKL | JensenShannon | CrossEntropy | PolicyGradient, Field(discriminator="kind")
]
Thoughts = Literal["train", "mask", "drop"]  # what is learnt of a turn's thought
Filter = Literal["success", "none", "advantage", "best_of_n"]
Teacher = Annotated[FrozenTeacher | LiveTeacher | AveragedTeacher | OtherTeacher, Field(discriminator="kind")]


class Algorithm(Section):
    """The values that a named algorithm sets; a recipe's own keys outrank them."""

    paper: str  # its source
    generator: Generator
    divergence: Divergence
    filter: Filter
    teacher: Teacher
    attempts: int | None = None  # None: left to the recipe

    def switches(self) -> dict[str, Any]:
        """Keys and values of [distill]."""
        return self.model_dump(exclude={"paper"}, exclude_none=True)
