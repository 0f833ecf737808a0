"""Named distillation recipes, and the table of switches that contradict each other. Light: no torch, no config.

A preset only fills in switches that are left open where it is named; docs/regimes.md says where each comes from.
Left out: the switches themselves (`config.DistillConfig`). What must not change: an explicit key overrides its
preset, and every row of the table is one sentence that names both keys.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # arXiv 2606.04703: the recipe that lasts, L_off
    "off_policy": {"generator": "teacher", "divergence": "forward", "filter": "success", "teacher": "frozen"},
    # arXiv 2606.04703: the one it is compared with, L_on
    "on_policy": {"generator": "student", "divergence": "reverse", "filter": "none", "teacher": "frozen"},
    # arXiv 2601.19897, as its results were made (forward, though version 1 derives the reverse): the student's own
    # samples, a teacher that follows it slowly, fresh samples as it moves
    "sdft": {
        "generator": "student",
        "divergence": "forward",
        "filter": "none",
        "teacher": "ema",
        "ema": 0.99,
        "refresh": 4,
    },
    # arXiv 2601.18734: the student's own samples, the first weights as teacher, D(teacher || student)
    "opsd": {"generator": "student", "divergence": "forward", "filter": "none", "teacher": "frozen", "refresh": 4},
    # arXiv 2306.13649: generalized Jensen-Shannon on the student's own samples
    "gkd": {
        "generator": "student",
        "divergence": "js",
        "alpha": 0.5,
        "filter": "none",
        "teacher": "frozen",
        "refresh": 4,
    },
    # arXiv 2308.01825: cross-entropy on the policy's own successes, no experience involved
    "rft": {"generator": "student", "divergence": "sft", "filter": "success", "attempts": 4},
}

# Keys of [distill.trainer]: arguments of transformers' TrainingArguments that change how fast or on what it trains,
# or how the optimizer moves, and nothing that this package decides itself.
TRAINER_KEYS = frozenset(
    {
        "accelerator_config", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "ddp_find_unused_parameters",
        "deepspeed", "fp16", "fsdp", "fsdp_config", "gradient_checkpointing", "gradient_checkpointing_kwargs",
        "lr_scheduler_kwargs", "lr_scheduler_type", "optim", "optim_args", "project", "run_name", "tf32",
        "torch_compile", "torch_empty_cache_steps", "trackio_space_id", "warmup_steps", "weight_decay",
    }
)  # fmt: skip

Settings = Any  # a config.DistillConfig; config imports this module

# A regime is contradictory when a row's test holds; its sentence says why. First row first.
CONTRADICTIONS: tuple[tuple[Callable[[Settings], bool], str], ...] = (
    (
        lambda d: d.divergence == "sft" and d.support != "full",
        "distill.support = {support!r} has no meaning under distill.divergence = 'sft', which needs no distribution",
    ),
    (
        lambda d: d.divergence == "sft" and d.teacher != "frozen",
        "distill.teacher = {teacher!r} has no effect under distill.divergence = 'sft', which asks no teacher",
    ),
    (
        lambda d: d.generator == "student" and d.divergence == "sft" and d.filter == "none",
        "distill.filter = 'none' teaches nothing under distill.generator = 'student' and distill.divergence = 'sft'",
    ),
    (
        lambda d: d.support == "sampled" and d.divergence != "reverse",
        "distill.support = 'sampled' estimates the reverse KL only, not distill.divergence = {divergence!r}",
    ),
    (
        lambda d: d.support == "sampled" and d.generator != "student",
        "distill.support = 'sampled' needs distill.generator = 'student': on another's tokens its estimate is biased",
    ),
    (
        lambda d: d.teacher == "model" and not d.teacher_source,
        "distill.teacher = 'model' needs distill.teacher_source, the model to learn from",
    ),
    (
        lambda d: bool(d.teacher_source) and d.teacher != "model",
        "distill.teacher_source = {teacher_source!r} is only used with distill.teacher = 'model'",
    ),
    (
        lambda d: d.filter in {"advantage", "best_of_n"} and d.attempts < 2,
        "distill.filter = {filter!r} compares the attempts of a task and needs distill.attempts of at least 2",
    ),
    (
        lambda d: d.refresh > 0 and d.generator != "student",
        "distill.refresh = {refresh} needs distill.generator = 'student': only its rollouts age as it learns",
    ),
    (
        lambda d: d.refresh > 0 and d.batch_tokens > 0,
        "distill.refresh = {refresh} counts steps of distill.batch and excludes distill.batch_tokens = {batch_tokens}",
    ),
    (
        lambda d: d.in_context == "keep" and d.teacher == "live" and d.divergence != "sft",
        "distill.in_context = 'keep' has no effect with distill.teacher = 'live', which then is the student",
    ),
    (
        lambda d: d.in_context == "learn" and d.filter == "none",
        "distill.in_context = 'learn' teaches failures too under distill.filter = 'none'",
    ),
    (
        lambda d: d.early_stop > 0 and d.held_out == 0,
        "distill.early_stop = {early_stop} watches held-out examples and needs distill.held_out above 0",
    ),
    (
        lambda d: d.early_stop > 0 and d.refresh > 0,
        "distill.early_stop = {early_stop} compares epochs, of which distill.refresh = {refresh} has one a round",
    ),
)


def expanded(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a [distill] section with those of its preset filled in; an unknown preset is left to its field."""
    return {**PRESETS.get(str(values.get("preset", "")), {}), **values}


def outrank(values: dict[str, Any]) -> None:
    """Take out of a [distill] section what its preset, named after the section was written, says otherwise."""
    for key in PRESETS.get(str(values["preset"]), {}):
        values.pop(key, None)


def contradiction(settings: Settings) -> str | None:
    """Why these switches cannot go together, in one sentence; None if they can."""
    for holds, sentence in CONTRADICTIONS:
        if holds(settings):
            return sentence.format(**dict(settings))
    return None


def odd_trainer_key(keys: Mapping[str, Any]) -> str | None:
    """What is wrong with the keys of [distill.trainer]; None if nothing is."""
    odd = sorted(keys.keys() - TRAINER_KEYS)
    if not odd:
        return None
    return f"distill.trainer: {odd[0]!r} cannot be set there; possible: {', '.join(sorted(TRAINER_KEYS))}"
