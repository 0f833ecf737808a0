"""A policy that a function writes, and episodes that it plays through the same door as a run's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from internalize.config.schema import Config, RolloutConfig
from internalize.config.specs import RolloutSpec
from internalize.inference.agent import TokenAgent
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.scripted import ScriptedEngine
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.interfaces import Environment
from internalize.judge.match import ExactJudge
from internalize.records import Checkpoint, Task, Trajectory
from internalize.rollout.local import LocalRollouts
from internalize.stages.scripted import STARTER
from tests.tiny import tiny_tokenizer

RENDERER = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])


class Written:
    """A policy and its loader; `reply` is given the text so far and writes the next turn."""

    def __init__(self, reply: Callable[[str], str], **limits: Any) -> None:
        self.checkpoint = STARTER
        self.engine = ScriptedEngine(lambda _, text: reply(text), RENDERER)
        settings = RolloutConfig(**{"max_action_tokens": 300, **limits})
        self.agent = TokenAgent(self.engine, RENDERER, settings, 20_000, 4, ExactJudge())

    async def load(self, checkpoint: Checkpoint, root: Path) -> Written:
        return self

    def chat(self, name: str = "self") -> Any:
        raise AssertionError(name)


def played(env: Environment, tasks: Sequence[Task], reply: Callable[[str], str], **limits: Any) -> list[Trajectory]:
    """The episodes of the tasks, in their order."""
    config = Config.model_validate({"env": {"name": env.name}})
    spec = RolloutSpec(
        config=config, root=Path(), checkpoint=STARTER, env=config.env, stage="r", iteration=0, attempts=1
    )

    async def all_of() -> dict[str, Trajectory]:
        backend = LocalRollouts(Written(reply, **limits), lambda _: env)  # type: ignore[arg-type]
        return {one.task_id: one async for one in backend.run(spec, tasks)}

    found = asyncio.run(all_of())
    return [found[task.id] for task in tasks]
