"""Which tasks a run plays and measures.

Tasks of suites never reach extraction or training (invariant 12). Tasks of final suites are in no suite by which a
checkpoint is chosen (invariant 14).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from internalize.config.schema import Config, EnvConfig
from internalize.errors import TaskError, UserError
from internalize.interfaces import Environment, Renderer
from internalize.records import Message, Task
from internalize.runs import names


class TaskPlan(NamedTuple):
    """The tasks of a run: those of each suite, and the training split in the order in which it is played."""

    env: Environment
    suites: dict[str, tuple[Task, ...]]
    training: list[Task]
    others: dict[str, Environment] = {}  # noqa: RUF012 - never changed; of the further suites
    again: tuple[str, ...] = ()  # the suites on which the gate confirms a loss

    def env_of(self, suite: str) -> Environment:
        """The environment of a suite."""
        return self.others.get(suite, self.env)

    def draw(self, config: Config, k: int, offset: int, count: int) -> list[Task]:
        """`count` training tasks for iteration `k`: a window over the split, wrapping around."""
        start = (k - 1) * (config.rollout.tasks + config.distill.tasks) + offset
        size = len(self.training)
        return [self.training[(start + i) % size] for i in range(min(count, size))]


def plan_tasks(config: Config, environments: Callable[[EnvConfig], Environment]) -> TaskPlan:
    """Choose the tasks. Raises UserError for an environment that cannot be made.

    Raises TaskError for an unknown or empty split, or a task both in training and in a suite (or in two suites).
    """
    settings, env = config.evaluate, environments(config.env)
    others = {name: environments(suite.env) for name, suite in settings.further.items()}
    suites = {name: others[name].tasks(suite.split)[: suite.tasks] for name, suite in settings.further.items()}
    suites |= {split: env.tasks(split)[: settings.final_tasks] for split in settings.final_splits}
    suites[settings.split] = env.tasks(settings.split)[: settings.tasks]
    again = _again(config, env)
    suites |= again
    if taken := others.keys() & {settings.split, *settings.final_splits}:
        raise TaskError(f"evaluate.further.{min(taken)}: that is the name of a split that is measured anyway")
    training = list(env.tasks(config.rollout.split))
    for name, tasks in {**suites, config.rollout.split: training}.items():
        of = f"evaluate.further.{name}: {others[name].name}" if name in others else env.name
        split = settings.further[name].split if name in others else name  # of `again` the name says it
        if not tasks:
            raise TaskError(f"{of}: the split {split!r} holds no tasks")
    require_disjoint(training, [task for tasks in suites.values() for task in tasks])
    for final in settings.final_splits:
        both = f"in the final suite {final!r} and in {settings.split!r}, by which iterations are chosen"
        require_disjoint(suites[final], [task for name in (settings.split, *again) for task in suites[name]], both)
    if config.rollout.order == "shuffled":
        random.Random(config.seed).shuffle(training)
    return TaskPlan(env, suites, training, others, tuple(again))


def _again(config: Config, env: Environment) -> dict[str, tuple[Task, ...]]:
    """The suites on which the gate confirms a loss: the tasks of the split that follow those of `evaluate.tasks`."""
    if config.gate.rule != "confirm":
        return {}
    split, size = config.evaluate.split, config.evaluate.tasks
    rest = tuple(env.tasks(split)[size:][: config.gate.most])
    if not rest:
        raise TaskError(
            f"{env.name}: gate.rule = 'confirm' needs more tasks of {split!r} than evaluate.tasks = {size:,}, which "
            "takes them all"
        )
    parts = ((name, rest[n * size :][:size]) for n, name in enumerate(names.again(split, size, len(rest))))
    return dict(parts)


def require_room(config: Config, plan: TaskPlan, renderer: Renderer | None) -> None:
    """Raises UserError if the description of an environment's tools leaves no room for its shortest question."""
    if renderer is None:
        return
    for env, tasks in ((plan.env, plan.training), *((plan.env_of(name), suite) for name, suite in plan.suites.items())):
        system = Message(role="system", content=renderer.instructions(env.tools))
        question = Message(role="user", content=min((task.question for task in tasks), key=len))
        used = len(renderer.context((system, question), (), "", env.tools).ids)
        if used + config.rollout.max_turn_tokens > config.model.max_context:
            raise UserError(
                f"{env.name}: its tools and the shortest question take {used:,} tokens and a turn up to "
                f"{config.rollout.max_turn_tokens:,}, more than model.max_context = {config.model.max_context:,}"
            )


def require_disjoint(
    tasks: Sequence[Task], others: Sequence[Task], both: str = "in training and in an evaluation suite"
) -> None:
    """Raises TaskError naming a task that is in both, by id or by question."""
    ids, questions = {t.id for t in others}, {" ".join(t.question.split()).lower() for t in others}
    for task in tasks:
        if task.id in ids or " ".join(task.question.split()).lower() in questions:
            raise TaskError(f"task {task.id} ({task.question[:60]!r}) is both {both}")
