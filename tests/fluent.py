"""A tiny model that speaks the toy environment's protocol, a pool that changes what it does, and a run of both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from internalize.config.distill import DistillConfig
from internalize.config.schema import Config, load_config
from internalize.experience.pool import ExperiencePool, empty, save_pool
from internalize.inference.renderer import TemplateRenderer, with_system
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Experience, Message, PoolEdit, Stage, Step, Task, TrainSummary, Trajectory
from internalize.runs.store import RunStore
from internalize.stages.backends import in_process
from internalize.stages.learn import distill
from internalize.stages.plan import plan_tasks
from internalize.stages.run import Run, silent
from internalize.training.distill import fit
from internalize.training.examples import build_example
from internalize.training.policy import LocalPolicy
from internalize.training.scoring import pack_clean
from internalize.training.teachers import TrainItem
from tests.steps import step
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy import Toy

SETTINGS = [
    "iterations=1", "env.name=toy", "env.options={size=24}", "rollout.tasks=2", "rollout.max_steps=3",
    "rollout.max_action_tokens=12", "evaluate.tasks=2", "evaluate.final_tasks=2", "compute.batch=24",
    "inject.pattern=stepwise", "inject.k=1", "distill.tasks=24", "distill.epochs=2", "distill.batch=4",
    "distill.lr=5e-3", "distill.lora_r=8",
]  # fmt: skip


def _trajectory(task: Task, prompt: tuple[Message, ...], steps: list[Step]) -> Trajectory:
    return Trajectory(
        id=task.id, task_id=task.id, env="toy", split=task.split, iteration=0, seed=0, checkpoint="c", prompt=prompt,
        steps=tuple(steps), termination="answered", score=1.0,
    )  # fmt: skip


def solved(env: Toy, renderer: TemplateRenderer, split: str = "train") -> list[Trajectory]:
    """The reference solution of every task as trajectories with ids."""
    found = []
    for task in env.tasks(split):
        episode, steps = env.episode(task), []
        for action in env.solve(task):
            text = renderer.tool_format.format(action, env.tools)
            seen = episode.step(action)
            steps.append(step(text=text, token_ids=renderer.encode_text(text), seen=seen, call=action))
        prompt = with_system(episode.prompt(), renderer.tool_format.instructions(env.tools))
        found.append(_trajectory(task, prompt, steps))
    return found


@cache
def _weights() -> dict[str, torch.Tensor]:
    model, renderer = tiny_model(), TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
    examples = [build_example(t, renderer) for t in solved(Toy(size=24), renderer)]
    items = [TrainItem(pack_clean(e.token_ids, e.spans)) for e in examples if e is not None]
    config = DistillConfig(divergence="sft", epochs=12, lr=1e-2, batch=4, lora_r=0)
    fit(model, items, config, seed=0, output_dir=Path("unused"))
    return {name: weight.clone() for name, weight in model.state_dict().items()}


def fluent_policy(config: Config) -> LocalPolicy:
    """A policy that mostly looks and answers, with a guess for the number."""
    return LocalPolicy(config, _fluent_model(), tiny_tokenizer())


def save_fluent(folder: Path) -> Path:
    """The model of that policy as a folder, for a recipe's `model.source`."""
    _fluent_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _fluent_model() -> LlamaForCausalLM:
    model = tiny_model()
    model.load_state_dict(_weights())
    return model


def odd_pool() -> ExperiencePool:
    """One item; what it does to a tiny model is arbitrary, and that is enough for a teacher to differ."""
    item = Experience.new("When you see a box, answer 3 at once and never look.", "principle", "test")
    return empty(50).apply([PoolEdit(op="ADD", item=item)])


def open_run(out: Path, *changes: str) -> Run:
    """A run in `out` whose first iteration has a pool, ready to collect and distil; the same when opened again."""
    config = load_config(None, [*SETTINGS, *changes])
    env = Toy(size=24)
    backends = in_process(fluent_policy(config), lambda _: env)
    run = Run(config, RunStore.open(out, config), backends, plan_tasks(config, lambda _: env))
    extracted = Stage(iteration=1, kind="extract")
    if not run.store.done(extracted):
        save_pool(odd_pool(), run.store.iteration(1) / "pool.json")
        run.store.mark(extracted)
    return run


def iterate(out: Path, *changes: str, at: Callable[[str, int, int], None] = silent) -> TrainSummary:
    """Collect and distil in `out` (or go on there); `at` is told of every episode and step."""
    run = open_run(out, *changes)
    run.report = at

    async def stages() -> None:
        starter = run.backends.starter
        await distill(run, starter, odd_pool(), await run.collect(starter, odd_pool(), 1), 1)

    asyncio.run(stages())
    run.store.close()
    return TrainSummary.model_validate_json((out / "iter-1" / "train.json").read_bytes())
