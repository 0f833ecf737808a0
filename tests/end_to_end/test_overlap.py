"""Rollouts that begin beside the evaluation of their policy: the records of a run in which one follows the other."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="examples need a tokenizer")

from benchmarks.integrity import contents
from internalize import loop
from internalize.config.schema import Config, RolloutConfig, load_config
from internalize.config.specs import RolloutSpec
from internalize.environments.registry import Environments
from internalize.evaluation.gate import Decision
from internalize.inference.renderer import TemplateRenderer
from internalize.inference.tool_formats import TOOL_FORMATS
from internalize.records import Checkpoint, Message, Task, Trajectory
from internalize.stages import promote
from internalize.stages.run import Backends
from internalize.stages.scripted import scripted_backends
from tests.tiny import tiny_tokenizer
from tests.toy import Toy

SETTINGS = [
    "iterations=3", "env.name=toy", "rollout.tasks=4", "rollout.attempts=1", "distill.tasks=2", "distill.filter=none",
    "distill.divergence=sft", "evaluate.tasks=3", "evaluate.final_splits=[]", "evaluate.drift=0", "gate.rule=no_worse",
    "evaluate.resamples=100", "rollout.require_success=false",
]  # fmt: skip


class Watched:
    """A rollout backend that notes when stages begin and end, and lets others work in between."""

    def __init__(self, made: Backends) -> None:
        self._inner, self.log = made.rollouts, list[str]()

    async def run(
        self, spec: RolloutSpec, tasks: Sequence[Task], done: Collection[str] = ()
    ) -> AsyncIterator[Trajectory]:
        name = f"{spec.stage} {spec.iteration}"
        self.log.append(f"begin {name}")
        async for episode in self._inner.run(spec, tasks, done):
            await asyncio.sleep(0.01)
            yield episode
        self.log.append(f"end {name}")


def says(checkpoint: Checkpoint, messages: Sequence[Message]) -> str:
    """Different checkpoints look into different boxes."""
    return f"look[{len(checkpoint.id + messages[-1].text) % 7}]" if len(messages) < 4 else f"answer[{checkpoint.id}]"


def play(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[str]:
    verdicts = [Decision(promote=promote, reason="r", interval=None) for promote in (False, True, True)]
    monkeypatch.setattr(promote, "decide", lambda *_: verdicts.pop(0))
    logs = list[list[str]]()

    def backends(config: Config, _: Environments) -> Backends:
        renderer = TemplateRenderer(tiny_tokenizer(), TOOL_FORMATS["bracket"])
        made = scripted_backends(Toy(), says, renderer, RolloutConfig(max_steps=4, max_action_tokens=8))
        watched = Watched(made)
        logs.append(watched.log)
        return dataclasses.replace(made, rollouts=watched)

    loop.run(load_config(None, [*SETTINGS, *more]), out, backends=backends)
    return logs[0]


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    from internalize.environments import registry  # noqa: PLC0415

    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))


def test_the_records_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    after = play(tmp_path / "after", monkeypatch)
    beside = play(tmp_path / "beside", monkeypatch, "compute.overlap=true")
    assert contents(tmp_path / "beside").keys() == contents(tmp_path / "after").keys()
    found, wanted = contents(tmp_path / "beside"), contents(tmp_path / "after")
    assert [name for name in wanted if found[name] != wanted[name] and name != "run.json"] == []
    measured = "end evaluate dev in_context 2"
    assert after.index("begin rollout 2") > after.index(measured)
    assert beside.index("begin rollout 2") < beside.index(measured)
    assert beside.count("begin rollout 1") == 2, "begun for the candidate that was rejected, then for its parent"
