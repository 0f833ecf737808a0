"""An environment in which one habit decides, and a tiny policy that lacks it unless experience stands in its prompt.

Whoever looks before answering scores 1. Left alone, the policy looks at one of four boxes; after "Experience:" it
looks at nearly all. So the loop has something to extract, to teach and to measure, in seconds.
"""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.experience.inject import render_items
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import DistillExample, Message, Step, Task, ToolCall, ToolSpec, Trajectory
from internalize.stages.backends import in_process
from internalize.training.examples import build_example
from internalize.training.policy import LocalPolicy
from tests.steps import act, step
from tests.tiny import tiny_model, tiny_tokenizer

STEPS = 110  # of training the starting weights
FOUND = "Found: 42."
LOOK, ANSWER = act("search", "io"), act("answer", "42")  # few tokens of the tiny tokenizer
HINTS = (  # what an item may say
    "At the start, search[io].", "Search before you answer.", "When a box is asked, search[io] first.", "Search io.",
)  # fmt: skip

SETTINGS = [
    "iterations=1", "env.name=lookers", "rollout.tasks=24", "rollout.attempts=2", "rollout.max_steps=3",
    "rollout.max_action_tokens=10", "evaluate.tasks=24", "evaluate.final_tasks=8", "evaluate.resamples=200",
    "evaluate.drift=2", "compute.batch=8", "distill.tasks=16", "distill.lr=5e-3", "distill.lora_r=8",
]  # fmt: skip


class Looking:
    """One episode: it scores whether the box was looked into before the answer."""

    def __init__(self, task: Task) -> None:
        self.task, self.looked, self.right = task, False, False

    def prompt(self) -> tuple[Message, ...]:
        return (Message(role="user", content=self.task.question),)

    def step(self, action: ToolCall | None) -> str | None:
        if action is None:
            return "Unknown action."
        if action.name == "answer":
            self.right = self.looked and action.argument == "42"
            return None
        self.looked = True
        return FOUND

    def score(self) -> float | None:
        return float(self.right)


class Lookers:
    name = "lookers"
    tools = (
        ToolSpec(name="search", argument="place", description="Search a place."),
        ToolSpec(name="answer", argument="number", description="Answer."),
    )
    evidence_actions = frozenset({"search"})
    final_actions = frozenset({"answer"})

    def tasks(self, split: str) -> tuple[Task, ...]:
        first = {"train": 100, "dev": 300, "test": 500}[split]
        return tuple(Task.new("lookers", split, f"What is in the box {n}?", "42") for n in range(first, first + 100))

    def episode(self, task: Task) -> Looking:
        return Looking(task)

    def solve(self, task: Task) -> tuple[ToolCall, ...]:
        return (LOOK, ANSWER)


def _written(
    renderer: TemplateRenderer, question: str, calls: tuple[ToolCall, ...], hint: str, hinted: int
) -> Trajectory:
    """An episode as text to learn from; the hint stands before call number `hinted`."""
    shown = [f"\n{hint}" if number == hinted else "" for number in range(len(calls))]
    prompt = (Message(role="user", content=question + shown[0]),)
    steps: list[Step] = []
    for number, call in enumerate(calls):
        text = renderer.tool_format.format(call, Lookers.tools)
        seen = FOUND + shown[number + 1] if number + 1 < len(calls) else None
        steps.append(step(text, call, seen, token_ids=renderer.encode_text(text)))
    return Trajectory(
        id=question, task_id=question, env="lookers", split="train", iteration=0, seed=0, checkpoint="c", score=1.0,
        prompt=with_system(prompt, renderer.tool_format.instructions(Lookers.tools)), steps=tuple(steps),
        termination="answered",
    )  # fmt: skip


@cache
def _weights() -> dict[str, torch.Tensor]:
    """Weights that look first in one of four episodes, and in nearly all with experience in the prompt."""
    model, renderer, draw = tiny_model(), TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"]), random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.0)
    for moment in range(STEPS):
        batch = []
        for number in range(8):
            question, hint = f"What is in the box {draw.randrange(1000)}?", render_items([HINTS[number % len(HINTS)]])
            batch += [_written(renderer, question, (ANSWER,), hint, 9)] * (2 + number % 2)
            batch += [_written(renderer, question, (LOOK, ANSWER), hint, number % 2 + 1)]
            batch += [_written(renderer, question, (LOOK,), hint, 0)]
        for group in optimizer.param_groups:
            group["lr"] = 6e-3 * min(1.0, 2 * (1 - moment / STEPS))
        _loss(model, [build_example(one, renderer) for one in batch]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: weight.detach().clone() for name, weight in model.state_dict().items()}


def _loss(model: LlamaForCausalLM, examples: list[DistillExample | None]) -> torch.Tensor:
    """Cross-entropy of the actions, all examples in one padded batch."""
    kept = [example for example in examples if example is not None]
    ids = torch.zeros(len(kept), max(len(example.token_ids) for example in kept), dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, example in enumerate(kept):
        ids[row, : len(example.token_ids)] = torch.tensor(example.token_ids)
        for span in example.spans:
            labels[row, span.start : span.end] = ids[row, span.start : span.end]
    loss: torch.Tensor = model(ids, labels=labels).loss
    return loss


def looking_policy(config: Config) -> LocalPolicy:
    model = tiny_model()
    model.load_state_dict(_weights())
    return LocalPolicy(config, model, tiny_tokenizer())


def run(out: Path, *changes: str, resume: bool = False) -> None:
    """The loop with the default recipe, in sizes that take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "lookers", registry.Builtin("tests.lookers", "Lookers", "boxes"))
        config = load_config(None, [*SETTINGS, *changes])
        loop.run(config, out, resume=resume, backends=lambda config, made: in_process(looking_policy(config), made))
