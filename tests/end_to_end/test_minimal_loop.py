"""The loop through the public door alone improves a tiny model, from a running event loop too."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType

import pytest

import internalize as it
from internalize.environments import registry
from tests.fluent import save_fluent
from tests.toy import Toy

RECIPE = Path("recipes/minimal_loop.py")
QUICKSTART = Path("docs/quickstart.md")
SET = [
    "iterations=2", "env.name=same", "env.options={size=48}", "evaluate.final_splits=[]", "rollout.tasks=12",
    "rollout.max_steps=3", "rollout.max_action_tokens=12",
    "compute.batch=24", "evaluate.tasks=24", "distill.tasks=36", "distill.epochs=3",
    "distill.batch=4", "distill.lr=5e-3", "distill.lora_r=8", "distill.divergence=sft", "inject.pattern=none",
]  # fmt: skip


class SameBoxes(Toy):
    """Every box holds the same number: what the tiny model, which guesses, can learn from its few successes."""

    def tasks(self, split: str) -> tuple[it.Task, ...]:
        return tuple(it.Task.new("toy", split, task.question, "3", "box") for task in super().tasks(split))


@pytest.fixture(autouse=True)
def _environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "same", registry.Builtin(__name__, "SameBoxes", "boxes"))


def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal_loop", RECIPE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_one_page_and_uses_the_door_alone() -> None:
    lines = RECIPE.read_text().splitlines()
    assert len(lines) < 120
    assert [line for line in lines if "internalize" in line and "import" in line] == ["import internalize as it"]


def test_success_improves(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("")
    source = f"model.source={json.dumps(str(save_fluent(tmp_path / 'model')))}"
    measured = recipe().main(tmp_path / "recipe.toml", tmp_path / "run", *SET, source)
    first, *_, last = (metrics.success for metrics in measured)
    assert first is not None
    assert last is not None
    assert last.mean > first.mean
    assert last.low > first.mean


def test_stages_can_be_called_where_an_event_loop_runs_and_refuse_tasks_of_suites(tmp_path: Path) -> None:
    """As in a notebook, over scripted backends."""
    config = it.load_config(None, ["env.name=same", "rollout.tasks=4", "evaluate.tasks=2", "evaluate.final_splits=[]"])

    async def notebook() -> None:
        made = it.scripted_backends(SameBoxes(), lambda checkpoint, messages: "answer[3]")
        bench = it.open_workbench(config, tmp_path, lambda *_: made)
        learning, _ = bench.training_tasks(1)
        found = it.roll_out(bench, bench.starter, learning, attempts=2)
        assert [t.task_id for t in found] == [task.id for task in learning for _ in range(2)]
        assert all(t.score == 1.0 for t in found)
        assert it.extract(bench, found).items == ()
        metrics = it.evaluate(bench, bench.starter)
        assert metrics.success is not None
        assert (metrics.success.mean, metrics.success.n) == (1.0, 2)
        measured = it.roll_out(bench, bench.starter, bench.plan.suites["dev"])
        for learn in (lambda: it.extract(bench, measured), lambda: it.distill(bench, bench.starter, measured)):
            with pytest.raises(it.UserError, match="in an evaluation suite"):
                learn()
        with pytest.raises(it.UserError, match="no suite 'nowhere'"):
            it.evaluate(bench, bench.starter, "nowhere")
        with pytest.raises(it.UserError, match="no renderer"):
            it.distill(bench, bench.starter, found, it.ExperiencePool((it.Experience.new("x", "principle", "t"),), 1))
        bench.close()

    asyncio.run(notebook())


def test_a_run_goes_from_a_notebook_and_its_directory_is_read(tmp_path: Path) -> None:
    config = it.load_config(None, ["env.name=same", "rollout.tasks=4", "evaluate.tasks=2", "evaluate.final_splits=[]",
                                   "iterations=1", "distill.epochs=0", "inject.pattern=none"])  # fmt: skip

    async def notebook() -> None:
        made = it.scripted_backends(SameBoxes(), lambda checkpoint, messages: "answer[3]")
        it.run(config, str(tmp_path / "run"), backends=lambda *_: made)

    asyncio.run(notebook())
    found = it.open_run(tmp_path / "run")
    assert found.config == config
    assert found.iterations == (0, 1)
    assert {line.suite for line in found.metrics} == {"dev"}
    assert len(found.trajectories(1, "rollout")) == 8
    assert len(found.trajectories(1)) == len(found.trajectories(1, "rollout")) + len(found.trajectories(1, "episodes"))
    assert found.pool(0) is None
    assert found.pool(1) == it.ExperiencePool((), config.extract.cap)
    assert found.checkpoint(1)
    assert found.decision(1)
    assert found.results(1)
    with pytest.raises(it.UserError, match="no iteration 2"):
        found.trajectories(2)
    with pytest.raises(it.UserError):
        it.open_run(tmp_path)


def test_the_code_of_the_quickstart_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page, in its order, with the recipe of a tiny model in place of the demo's."""
    source = f"model.source={json.dumps(str(save_fluent(tmp_path / 'model')))}"
    small = [*SET, source, "iterations=1", "inject.pattern=stepwise", "extract.max_p=1.0", "distill.epochs=1"]
    blocks = re.findall(r"```python\n(.*?)```", QUICKSTART.read_text(), re.DOTALL)
    assert len(blocks) == 4
    monkeypatch.setattr(it, "load_config", partial(_load, it.load_config, small))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(QUICKSTART), "exec"), names)  # noqa: S102 - the page's own code
    assert isinstance(names["policy"], it.Checkpoint)
    assert names["policy"].iteration == 1
    assert isinstance(names["bench"], it.Workbench)
    names["bench"].close()


def _load(load: Callable[..., it.Config], small: Sequence[str], recipe: str, changes: Sequence[str]) -> it.Config:
    assert recipe == "recipes/demo.toml"
    return load(None, [*small, *changes])


def test_a_run_whose_first_rollouts_all_fail_ends_and_says_what_helps(tmp_path: Path) -> None:
    config = it.load_config(None, ["env.name=same", "rollout.tasks=4", "evaluate.tasks=2", "evaluate.final_splits=[]",
                                   "iterations=2"])  # fmt: skip
    made = it.scripted_backends(SameBoxes(), lambda checkpoint, messages: "answer[wrong]")
    with pytest.raises(it.UserError) as ended:
        it.run(config, tmp_path / "run", backends=lambda *_: made)
    assert "0 of 8 episodes succeeded (8 ended with a wrong answer)" in str(ended.value)
    assert "0 of 4 tasks have a success and a failure" in str(ended.value)
    assert "model.source" in str(ended.value)
    on = it.load_config(None, ["env.name=same", "rollout.tasks=4", "evaluate.tasks=2", "evaluate.final_splits=[]",
                               "iterations=2", "distill.epochs=0", "rollout.require_success=false"])  # fmt: skip
    assert on.digest != config.digest  # because of the epochs
    assert it.load_config(None, ["rollout.require_success=false"]).digest == it.load_config(None).digest
    it.run(on, tmp_path / "on", backends=lambda *_: made)
    assert it.open_run(tmp_path / "on").iterations == (0, 1, 2)
