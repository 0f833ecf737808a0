"""Ways of distilling the same trajectories, each served in a process of its own to benchmarks/distillation.py.

Every way trains the same LoRA adapter on the same model with the same optimizer settings, one optimizer step a
repeat. `ours` is the package as users run it: one teacher pass and one student pass a trajectory. The step-by-step
ways use the same trainer and losses on one sequence a step, context, hint and action. TRL's trainers get those
sequences ready-made; its self-distillation trainer, which samples, is handed the recorded actions instead, so that no
sampling is timed. `full logits` runs what `ours` runs and makes the logits of every position at once.
"""

from __future__ import annotations

import copy
import logging
import math
import os
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.memory import Memory
from internalize.config.distill import DistillConfig
from internalize.config.regime import CrossEntropy
from internalize.inference.loading import load_policy, resolve_device
from internalize.records import ActionSpan, DistillExample
from internalize.records.packed import Packed
from internalize.training import teachers
from internalize.training.adapter import new_adapter
from internalize.training.head import head
from internalize.training.hf_trainer import build_trainer
from internalize.training.losses import divergence
from internalize.training.scoring import hidden_states, pack, pack_branches, pack_clean, teacher_hidden
from internalize.training.student import PolicyWithLoss
from internalize.training.teachers import References, TrainingSet, TrainItem, build_training_set
from internalize.training.weights import trained

Ids = Sequence[int]
teachers.SANE_MARGIN = -math.inf  # random ids are as unlikely as a broken teacher would find them


@dataclass(frozen=True)
class Job:
    """One way and its work."""

    method: str
    model: str
    vocabulary: int  # 0 = the model's own; else a small random model with so many tokens
    device: str
    dtype: str
    threads: int
    steps: int
    trajectories: int
    sizes: tuple[int, int, int, int]  # tokens: prompt, observation, action, hint
    rows: int  # sequences a batch, for those that pad


@dataclass(frozen=True)
class Turn:
    """One step by itself: both contexts and the action."""

    clean: tuple[int, ...]
    shown: tuple[int, ...]
    action: tuple[int, ...]


def trajectory(job: Job, seed: int) -> DistillExample:
    """Random ids; the hint of a step stands 3 tokens before its action, as where a user's turn ends."""
    draw = random.Random(seed)
    top = min(job.vocabulary or 40_000, 40_000)
    prompt, observation, action, hint = job.sizes

    def some(count: int) -> list[int]:
        return [draw.randrange(100, top) for _ in range(count)]

    ids, spans = some(prompt), []
    for _ in range(job.steps):
        start = len(ids)
        branch = (*some(hint), *ids[-3:])
        spans.append(ActionSpan(start=start, end=start + action, fork=start - 3, branch=branch))
        ids += some(action + observation)
    return DistillExample(trajectory_id=str(seed), token_ids=tuple(ids), spans=tuple(spans), prompt_length=prompt)


def turns_of(example: DistillExample) -> list[Turn]:
    ids = example.token_ids
    return [Turn(ids[: s.start], (*ids[: s.fork], *s.branch), ids[s.start : s.end]) for s in example.spans]


class Work:
    """Model, adapter and trajectories of a job."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.set_examples()
        self.model = new_adapter(self._base(), 16, 0)
        self.config = DistillConfig(epochs=1, lr=1e-5, batch=job.trajectories, held_out=0.0)
        self.folder = Path(tempfile.mkdtemp())

    def shortened(self) -> Work:
        """The same model with one trajectory of one step."""
        other = copy.copy(self)
        other.job = replace(self.job, steps=1, trajectories=1)
        other.set_examples()
        return other

    def set_examples(self) -> None:
        self.examples = [trajectory(self.job, seed) for seed in range(self.job.trajectories)]
        self.turns = [turn for example in self.examples for turn in turns_of(example)]

    def _base(self) -> Any:
        job = self.job
        if not job.vocabulary:
            return load_policy(job.model, "none", job.device, job.dtype)[0]
        config = LlamaConfig(
            vocab_size=job.vocabulary, hidden_size=256, intermediate_size=768, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
        )  # fmt: skip
        torch.manual_seed(0)
        return LlamaForCausalLM(config).to(resolve_device(job.device), getattr(torch, job.dtype))

    @cached_property
    def tokenizer(self) -> Any:
        return AutoTokenizer.from_pretrained(self.model.get_base_model().config._name_or_path)  # noqa: SLF001

    def train(self, items: Sequence[TrainItem], kind: type[PolicyWithLoss] = PolicyWithLoss, **change: Any) -> None:
        """One optimizer step of the package's own trainer over all items."""
        config = self.config.model_copy(update={"batch": len(items), **change})
        trained(self.model)
        build_trainer(kind(self.model, TrainingSet(items), config), 0, self.folder).train()


def ours(work: Work) -> None:
    work.train(build_training_set(work.model, work.examples, work.config, References(), 0).items)


def ours_sft(work: Work) -> None:
    config = work.config.model_copy(update={"divergence": CrossEntropy()})
    work.train(build_training_set(work.model, work.examples, config, References(), 0).items, divergence=CrossEntropy())


def ours_teacher(work: Work) -> None:
    for example in work.examples:
        teacher_hidden(work.model, pack(example))


def _alone(context: Ids, action: Ids) -> Packed:
    return pack_branches((*context, *action), [(len(context), (), action)])


def stepped_teacher(work: Work) -> list[Tensor]:
    return [teacher_hidden(work.model, _alone(turn.shown, turn.action)).cpu() for turn in work.turns]


def step_by_step(work: Work) -> None:
    answers = stepped_teacher(work)
    clean = [_alone(turn.clean, turn.action) for turn in work.turns]
    work.train([TrainItem(packed, answer) for packed, answer in zip(clean, answers, strict=True)])


class FullLogits(PolicyWithLoss):
    """The logits of every position of both sides at once, as one writes it first."""

    def token_losses(self, item: TrainItem) -> Tensor:
        student = head(self.policy)(hidden_states(self.policy, everywhere(item.packed)))[item.packed.rows]
        with torch.no_grad():
            teacher = head(self.policy)(item.teacher_AD)[item.teacher_input.rows]
        return divergence(student, teacher, "forward")


def everywhere(packed: Packed) -> Packed:
    return replace(packed, rows=torch.arange(len(packed.ids)))


def full_logits(work: Work) -> None:
    items = []
    for example in work.examples:
        hinted = pack(example)
        answer = teacher_hidden(work.model, everywhere(hinted))
        items.append(TrainItem(pack_clean(example.token_ids, example.spans), answer, teacher_input=hinted))
    work.train(items, FullLogits)


def _trl_arguments(work: Work, rows: int) -> dict[str, Any]:
    job, on_cpu = work.job, resolve_device(work.job.device).type == "cpu"
    together = min(job.rows, rows)
    return {
        "output_dir": str(work.folder), "num_train_epochs": 1, "per_device_train_batch_size": together,
        "gradient_accumulation_steps": math.ceil(rows / together), "learning_rate": work.config.lr,
        "max_grad_norm": work.config.max_grad_norm, "optim": "adamw_torch", "weight_decay": 0.0, "use_cpu": on_cpu,
        "bf16": job.dtype == "bfloat16", "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none",
        "disable_tqdm": True, "logging_steps": 1, "dataloader_pin_memory": False, "seed": 0,
    }  # fmt: skip


def _trl_sft(work: Work, rows: list[dict[str, list[int]]]) -> None:
    from datasets import Dataset  # noqa: PLC0415 - only the extra has it
    from trl import SFTConfig, SFTTrainer  # noqa: PLC0415

    settings = SFTConfig(**_trl_arguments(work, len(rows)), max_length=None)
    trained(work.model)
    SFTTrainer(work.model, settings, train_dataset=Dataset.from_list(rows), processing_class=work.tokenizer).train()


def trl_sft_whole(work: Work) -> None:
    """The strongest form: whole trajectories, labels at the actions alone."""
    rows = []
    for example in work.examples:
        labels = [-100] * len(example.token_ids)
        for span in example.spans:
            labels[span.start : span.end] = example.token_ids[span.start : span.end]
        end = example.spans[-1].end
        rows.append({"input_ids": list(example.token_ids[:end]), "labels": labels[:end]})
    _trl_sft(work, rows)


def trl_sft_steps(work: Work) -> None:
    rows = [
        {"input_ids": [*turn.clean, *turn.action], "labels": [-100] * len(turn.clean) + list(turn.action)}
        for turn in work.turns
    ]
    _trl_sft(work, rows)


def trl_sdft(work: Work) -> None:
    """Forward KL over the full vocabulary from the base weights with the hint, actions as recorded."""
    from datasets import Dataset  # noqa: PLC0415 - only the extra has it
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer  # noqa: PLC0415

    prompts = {str(i): list(turn.clean) for i, turn in enumerate(work.turns)}
    prompts |= {f"{i}|hint": list(turn.shown) for i, turn in enumerate(work.turns)}
    actions = {turn.clean: list(turn.action) for turn in work.turns}

    class Recorded(SDFTTrainer):
        def _tokenize_prompts(self, prompts_given: list[str]) -> list[list[int]]:
            return [prompts[name] for name in prompts_given]

        def _generate(self, prompt_ids: list[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
            return prompt_ids, [actions[tuple(ids)] for ids in prompt_ids]

    settings = SDFTConfig(
        **_trl_arguments(work, len(work.turns)), num_generations=1, max_prompt_length=None, distillation_alpha=0.0,
        distillation_mode="full_logits", distillation_is_clip=None, teacher_model_kind="base",
        teacher_prompt_template="{prompt}|{privileged_context}",
    )  # fmt: skip
    trained(work.model)
    data = Dataset.from_list([{"prompt": str(i), "privileged_context": "hint"} for i in range(len(work.turns))])
    Recorded(work.model, settings, train_dataset=data, processing_class=work.tokenizer).train()


METHODS: dict[str, Callable[[Work], Any]] = {
    "ours": ours,
    "step by step": step_by_step,
    "TRL self-distillation": trl_sdft,
    "full logits": full_logits,
    "teacher: ours": ours_teacher,
    "teacher: step by step": stepped_teacher,
    "sft: ours": ours_sft,
    "sft: TRL, whole": trl_sft_whole,
    "sft: TRL, steps": trl_sft_steps,
}


def forwarded(job: Job) -> int:
    """Tokens that the forward passes of a method read, padding not counted."""
    count = 0
    for example in (trajectory(job, seed) for seed in range(job.trajectories)):
        student = len(pack_clean(example.token_ids, example.spans).ids)
        steps = turns_of(example)
        taught, clean = (sum(len(getattr(t, side)) + len(t.action) - 1 for t in steps) for side in ("shown", "clean"))
        packed = len(pack(example).ids)
        count += {
            "ours": student + packed,
            "full logits": student + packed,
            "teacher: ours": packed,
            "teacher: step by step": taught,
            "sft: ours": student,
            "sft: TRL, whole": student,
            "sft: TRL, steps": clean,
        }.get(job.method, taught + clean)
    return count


def serve(job: Job, line: Connection) -> None:
    """Say ready, then answer every request with the cost of one repeat; what goes wrong is answered as text."""
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)  # trainers print
    os.dup2(quiet, 2)
    try:
        torch.set_num_threads(job.threads)
        logging.disable(logging.WARNING)
        work = Work(job)
        memory = Memory(resolve_device(job.device))
        METHODS[job.method](work.shortened())  # first-call costs are nobody's
        line.send("ready")
        while line.recv():
            line.send(_repeat(work, memory))
    except Exception:  # noqa: BLE001 - the parent reports it
        line.send(traceback.format_exc())


def _repeat(work: Work, memory: Memory) -> dict[str, float]:
    memory.reset()
    wall, cpu = time.perf_counter(), time.process_time()
    METHODS[work.job.method](work)
    memory.synchronize()
    cost = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return {**cost, "peak": memory.peak(), "tokens": forwarded(work.job)}
