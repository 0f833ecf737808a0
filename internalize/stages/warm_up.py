"""A warm-up: a model that cannot act in an environment yet is trained on the reference solutions of training tasks.

The loop learns from successes, so a policy that has none must be taught to act first. Only tasks of the training split
are used, and only solutions that score 1.0 when they are played.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from internalize.config.schema import Config, RolloutConfig
from internalize.config.specs import TrainSpec
from internalize.environments.loop_thread import finish
from internalize.environments.registry import Environments
from internalize.errors import TaskError, UserError
from internalize.experience.inject import Injector
from internalize.interfaces import Environment, Renderer
from internalize.records import ActionRequest, ActionTurn, Message, Task, ToolCall, ToolSpec, TrainSummary, Trajectory
from internalize.rollout.episode import Label, episode_id, run_episode
from internalize.runs import names
from internalize.runs.progress import Report
from internalize.runs.store import require_folder, write_json, write_jsonl

from .plan import plan_tasks
from .standalone import short_enough

LABEL = Label("warm-up", 0, 0, "reference")


class ReferenceAgent:
    """`interfaces.Agent` that makes the calls of reference solutions, a call a turn, in the words of a renderer."""

    wave, independent, judge = 1, True, None

    def __init__(self, env: Environment, renderer: Renderer, limits: RolloutConfig) -> None:
        self.limits, self._env, self._renderer = limits, env, renderer
        self._solutions: dict[str, tuple[ToolCall, ...]] = {}

    def prepare(self, task: Task) -> bool:
        """Look up the solution of a task; False if there is none."""
        solution = self._solutions[episode_id(task, 0, LABEL)] = self._env.solve(task)
        return bool(solution)

    def instructions(self, tools: Sequence[ToolSpec]) -> str:
        """What the system message says about the tools."""
        return self._renderer.instructions(tools)

    async def act(self, request: ActionRequest) -> ActionTurn | None:
        """The next call of the solution; None after its last, which ends an episode that should have ended before."""
        solution, number = self._solutions[request.episode], len(request.steps)
        if number >= len(solution):
            return None
        message = Message(role="assistant", tool_calls=(solution[number],))
        ids = self._renderer.encode_turn(message, request.tools)
        return ActionTurn(text=self._renderer.decode(ids), message=message, token_ids=ids)

    def release(self, episode: str) -> None:
        """Forget a solution that was played."""
        self._solutions.pop(episode, None)

    def reset(self) -> None:
        """Nothing outlives an episode."""


async def reference_episodes(
    env: Environment, tasks: Sequence[Task], agent: ReferenceAgent, report: Report
) -> list[Trajectory]:
    """The episodes of the solutions that score 1.0."""
    found = []
    for number, task in enumerate(tasks, start=1):
        if agent.prepare(task):
            played = await run_episode(task, 0, env, agent, Injector(), LABEL)
            found += [played] if played.score == 1.0 else []
        report("warm-up: reference solutions", number, len(tasks))
    return found


def warm_up(config: Config, count: int, out: Path, report: Report) -> TrainSummary:
    """Train the policy of a recipe on `count` training tasks and write its adapter, or all weights, to `out`.

    It goes on from the adapter that the recipe begins with; `model.adapter = "none"` begins with the model alone. The
    episodes are written beside `out`. Raises UserError, before the model is loaded, for a folder that holds files, and
    TaskError where no task has a reference solution.
    """
    out = out.resolve()
    require_folder(out)
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{out}: already holds files; choose another --out")
    plan = plan_tasks(config, Environments())
    tasks = plan.training[:count]
    if not any(plan.env.solve(task) for task in tasks[:20]):
        raise TaskError(
            f"{plan.env.name}: the tasks of {config.rollout.split!r} have no reference solutions to learn from"
        )
    from internalize.training.joined import join  # noqa: PLC0415 - imports torch
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - the same

    from .refresh import build_examples  # noqa: PLC0415 - the same

    policy = LocalPolicy.of(config)
    if config.distill.lora_r:
        with TemporaryDirectory() as name, policy.rehearsal(Path(name, "adapter")):
            join(config, Path(name, "adapter"), policy)  # what cannot be joined is told before anything is trained
    agent = ReferenceAgent(plan.env, policy.renderer, config.rollout)
    episodes = finish(reference_episodes(plan.env, tasks, agent, report))
    if not episodes:
        raise TaskError(
            f"{plan.env.name}: none of {len(tasks)} reference solutions scored 1.0 within rollout.max_steps"
        )
    write_jsonl(out.with_suffix(".jsonl"), episodes)
    examples = finish(build_examples([(episode, 1.0) for episode in episodes], policy.renderer, None))
    spec = TrainSpec(
        config=config,
        root=out.parent,
        parent=policy.starter,
        examples=out.with_suffix(".jsonl"),
        out=out.name,
        iteration=1,
        seed=config.seed,
        pool_version=None,
    )
    fitting = short_enough(config, out.with_suffix(".jsonl"), examples)
    summary = policy.train(fitting, spec, progress=lambda done, of, _: report("warm-up: train", done, of))
    if config.distill.lora_r:
        join(config, out, policy)
    summary = summary.model_copy(update={"rejected": len(tasks) - len(fitting)})
    write_json(out / names.TRAINING, summary)
    return summary
