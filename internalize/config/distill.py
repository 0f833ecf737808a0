"""The section [distill]: how the effect of experience gets into the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator, model_validator

from .algorithms import ALGORITHMS
from .overrides import filled_in
from .regime import (
    Divergence,
    Filter,
    ForwardKL,
    FrozenTeacher,
    Generator,
    Section,
    Teacher,
    TeacherPlays,
    Thoughts,
    listed,
)

# The TrainingArguments of transformers that [distill.trainer] may set: speed, devices and optimizer, but nothing that
# this package decides itself.
TRAINER_KEYS = frozenset(
    {
        "accelerator_config", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "ddp_find_unused_parameters",
        "deepspeed", "fp16", "fsdp", "fsdp_config", "gradient_checkpointing", "gradient_checkpointing_kwargs",
        "lr_scheduler_kwargs", "lr_scheduler_type", "optim", "optim_args", "project", "run_name", "tf32",
        "torch_compile", "torch_empty_cache_steps", "trackio_space_id", "warmup_steps", "weight_decay",
    }
)  # fmt: skip


class DistillConfig(Section):
    """How the effect of experience gets into the weights. docs/regimes.md explains each switch and algorithm."""

    algorithm: str = Field("", description="Named algorithm that fills in the switches left open here; '' = none.")
    generator: Generator = Field(TeacherPlays(), description="Who plays: 'teacher' (off-policy) or 'student'.")
    divergence: Divergence = Field(
        ForwardKL(), description="What is minimized: 'forward', 'reverse', 'js', 'sft' or 'policy_gradient'."
    )
    filter: Filter = Field("success", description="Which trajectories are trained on, and with which weight.")
    teacher: Teacher = Field(FrozenTeacher(), description="Whose weights teach: 'frozen', 'live', 'ema' or 'model'.")
    thoughts: Thoughts = Field(
        "train", description="Thoughts of turns: 'train' on them, 'mask' them (context only), 'drop' them."
    )
    per: Literal["token", "trajectory"] = Field("token", description="What counts the same in an optimizer step.")
    tasks: int = Field(48, ge=0, le=100_000, description="Tasks rolled out for training in one iteration.")
    own: bool = Field(
        default=False, description="Whether the iteration's rollouts without experience are trained on too."
    )
    attempts: int = Field(1, ge=1, le=64, description="Episodes a task for training.")
    most: int = Field(0, ge=0, le=100_000, description="Most accepted episodes an iteration trains on; 0 = all.")
    replay: float = Field(0.0, ge=0, le=10, description="Examples of earlier iterations for each new one; 0 = none.")
    held_out: float = Field(0.1, ge=0, le=0.5, description="Share of 20 or more examples measured, not trained on.")
    early_stop: int = Field(0, ge=0, le=100, description="Epochs without a better held-out loss to stop at; 0 = off.")
    kl_anchor: float = Field(0.0, ge=0, le=100, description="Weight of KL(student||starter) at action tokens; 0 = off.")
    in_context: Literal["off", "keep", "learn"] = Field(
        "off",
        description="Second training target with the experience left in the prompt, so that its use is not unlearned: "
        "'keep' what the teacher did there, 'learn' the accepted actions.",
    )
    epochs: int = Field(2, ge=0, le=100, description="Passes over the accepted trajectories; 0 = nothing is learnt.")
    lr: float = Field(2e-4, gt=0, le=1, description="Peak learning rate.")
    batch: int = Field(8, ge=1, le=4096, description="Trajectories an optimizer step.")
    batch_tokens: int = Field(0, ge=0, le=10_000_000, description="Action tokens a step instead of `batch`; 0 = off.")
    lora_r: int = Field(16, ge=0, le=512, description="LoRA rank; 0 = full fine-tuning.")
    lora_experts: bool = Field(
        default=True, description="Whether LoRA adapts stacked experts too; needs room for a second copy of them."
    )
    dropout: bool = Field(default=False, description="Whether the student trains with its model's own dropout.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient clipping norm.")
    save_steps: int = Field(0, ge=0, le=100_000, description="Optimizer steps between resumable states; 0 = none.")
    report_to: tuple[str, ...] = Field((), description="Logging back-ends of transformers, such as 'tensorboard'.")
    trainer: dict[str, JsonValue] = Field(default_factory=dict, description="Further TrainingArguments.")

    _one = field_validator("report_to", mode="before")(listed)

    @property
    def on_policy(self) -> bool:
        """Whether the student plays the training episodes."""
        return self.generator.kind == "student"

    @property
    def scores_plain(self) -> bool:
        """Whether a teacher with experience scores episodes that were played without it."""
        return (self.on_policy or self.own) and self.asks_teacher

    @property
    def refresh(self) -> int:
        """Optimizer steps between fresh training episodes; 0 = they are rolled out once."""
        return self.generator.refresh if self.generator.kind == "student" else 0

    @property
    def asks_teacher(self) -> bool:
        """Whether the student is compared with a teacher's distributions."""
        return self.divergence.kind not in {"sft", "policy_gradient"}

    @property
    def signed(self) -> bool:
        """Whether attempts worse than their task's mean are trained away from, instead of being left out."""
        return self.divergence.kind == "policy_gradient"

    @field_validator("algorithm")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name and name not in ALGORITHMS:
            raise ValueError(f"distill.algorithm = {name!r}: there are {', '.join(ALGORITHMS)}")
        return name

    @field_validator("trainer")
    @classmethod
    def _may_be_set(cls, keys: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if unknown := sorted(keys.keys() - TRAINER_KEYS):
            possible = ", ".join(sorted(TRAINER_KEYS))
            raise ValueError(f"distill.trainer: {unknown[0]!r} cannot be set there; possible: {possible}")
        return keys

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, values: Any) -> Any:
        return filled_in(values) if isinstance(values, dict) else values

    @model_validator(mode="after")
    def _fits_together(self) -> DistillConfig:
        for problem in (*contradictions(self), *_of_policy_gradient(self), *_without_use(self)):
            raise ValueError(problem)
        return self


def contradictions(d: DistillConfig) -> Iterator[str]:
    """A sentence for each pair of switches that exclude each other although their kinds allow both."""
    alone, rounds = not d.asks_teacher, f"distill.generator.refresh = {d.refresh}"
    if alone and d.teacher.kind != "frozen":
        kind = d.divergence.kind
        yield f"distill.teacher = {d.teacher.kind!r} has no effect under distill.divergence = {kind!r}, which asks none"
    if d.divergence.kind == "reverse" and d.divergence.support == "sampled" and not d.on_policy:
        yield "distill.divergence.support = 'sampled' is biased on another's tokens: set distill.generator = 'student'"
    if d.filter in {"advantage", "best_of_n"} and d.attempts < 2:
        yield f"distill.filter = {d.filter!r} compares the attempts of a task and needs distill.attempts of at least 2"
    if d.refresh and d.batch_tokens:
        yield f"{rounds} counts steps of distill.batch and excludes distill.batch_tokens = {d.batch_tokens}"
    if d.in_context == "keep" and d.teacher.kind == "live" and not alone:
        yield "distill.in_context = 'keep' has no effect with distill.teacher = 'live', which then is the student"
    if d.in_context == "learn" and d.filter == "none":
        yield "distill.in_context = 'learn' teaches failures too under distill.filter = 'none'"
    if d.early_stop and not d.held_out:
        yield f"distill.early_stop = {d.early_stop} watches held-out examples and needs distill.held_out above 0"
    if d.early_stop and d.refresh:
        yield f"distill.early_stop = {d.early_stop} compares epochs, of which {rounds} has one a round"


def _of_policy_gradient(d: DistillConfig) -> Iterator[str]:
    """Its ratio is that of the weights which play to those which are trained, and its weights have a sign."""
    if not d.signed:
        return
    name = "distill.divergence = 'policy_gradient'"
    if not d.on_policy:
        yield f"{name} compares with the policy that played: set distill.generator = 'student'"
    if d.filter != "advantage":
        yield f"{name} needs distill.filter = 'advantage', which says what was better than the task's mean"
    if d.in_context != "off":
        yield f"{name} trains away from failures and excludes distill.in_context = {d.in_context!r}"
    if d.replay:
        yield f"{name} compares with the policy that played, which distill.replay = {d.replay} does not keep"


def _without_use(d: DistillConfig) -> Iterator[str]:
    """A sentence for each pair of switches that leave nothing to learn, or nothing worth it."""
    if d.divergence.kind == "sft" and (d.on_policy or d.own) and d.filter == "none":
        whose = "distill.own = true" if d.own else "distill.generator = 'student'"
        yield f"distill.filter = 'none' teaches nothing under {whose}, distill.divergence = 'sft'"
    if not d.tasks and not d.own and d.epochs:
        yield "distill.tasks = 0 leaves nothing to train on: set distill.own = true, or distill.epochs = 0"
    if d.own and d.refresh:
        yield f"distill.own = true adds episodes of older weights, which distill.generator.refresh = {d.refresh} avoids"
