"""Invariant 14: what chose a checkpoint never reports it: no task of a final suite is one that the gate decides by."""

from pathlib import Path
from typing import cast

import pytest

from internalize.config.schema import Config, EnvConfig, load_config
from internalize.environments.registry import Environments
from internalize.errors import TaskError
from internalize.interfaces import Environment
from internalize.records import Checkpoint, EvalResult, Task
from internalize.report.headline import summary
from internalize.report.run_report import load
from internalize.stages import promote
from internalize.stages.plan import plan_tasks
from internalize.stages.run import Run
from tests.toy import Toy
from tests.unit.report_run import make_run


class Overlapping(Toy):
    """Task 500 of dev is asked in test again, as another task."""

    def tasks(self, split: str) -> tuple[Task, ...]:
        again = Task.new("toy", split, "which  number is in BOX 500?", "9")
        return (*super().tasks(split), again) if split == "test" else super().tasks(split)


def plan(env: Environment, *changes: str) -> dict[str, set[str]]:
    config = load_config(None, ["env.name=toy", *changes])
    return {name: {task.id for task in tasks} for name, tasks in plan_tasks(config, lambda _: env).suites.items()}


def test_the_suite_that_chooses_and_the_suite_that_reports_share_no_task() -> None:
    suites = plan(Toy())
    assert suites["dev"]
    assert suites["test"]
    assert not suites["dev"] & suites["test"]


@pytest.mark.parametrize(
    ("env", "change"), [(Overlapping(), "gate.rule=no_worse"), (Toy(), "evaluate.final_splits=['test', 'dev']")]
)
def test_a_final_suite_with_a_task_that_chooses_is_refused_by_name(env: Environment, change: str) -> None:
    with pytest.raises(TaskError, match=r"task \w+ .*'(test|dev)' and in 'dev'"):
        plan(env, change)


@pytest.mark.parametrize("name", ["docs", "maths"])
def test_the_built_in_environments_with_their_defaults_may_be_reported(name: str) -> None:
    pytest.importorskip("sympy", reason="needs the extra 'maths'")
    plan_tasks(Config(env=EnvConfig(name=name)), Environments())


def test_the_tasks_that_confirm_a_loss_report_nothing_and_are_not_trained_on() -> None:
    suites = plan(Toy(), "gate.rule=confirm", "evaluate.tasks=4", "gate.most=6")
    assert [len(tasks) for name, tasks in suites.items() if name.startswith("dev")] == [4, 4, 2]
    assert len(set.union(*suites.values())) == sum(map(len, suites.values()))
    with pytest.raises(TaskError, match=r"needs more tasks of 'dev' than evaluate\.tasks = 4,000"):
        plan(Toy(), "gate.rule=confirm", "evaluate.tasks=4000")


class Measured:
    """A run with four dev tasks that the new checkpoint lost, and as many test tasks that it won."""

    config = load_config(None, ["env.name=toy", "gate.rule=no_worse"])

    def results(self) -> list[EvalResult]:
        return [
            EvalResult(suite=suite, mode="internalized", iteration=k, checkpoint=f"c{k}", pool_version=None,
                       task_id=f"{suite}{n}", family="", success=float(k == won), premature=False, turns=1,
                       action_tokens=1, nll=0.5)
            for suite, won in (("dev", 0), ("test", 1)) for k in (0, 1) for n in range(20)
        ]  # fmt: skip

    def kept(self, k: int) -> Checkpoint:
        return Checkpoint(id="c0", parent=None, iteration=0, pool_version=None, config_digest="d", path="")


def test_the_gate_sees_no_result_of_a_final_suite() -> None:
    decision = promote._decided(cast("Run", Measured()), 1)
    assert not decision.promote
    assert decision.interval
    assert (decision.interval.mean, decision.interval.n) == (-1.0, 20)


@pytest.mark.parametrize(("rule", "gated"), [("always", False), ("no_worse", True)])
def test_a_report_on_the_suite_of_a_gate_says_so(tmp_path: Path, rule: str, *, gated: bool) -> None:
    report = load(make_run(tmp_path / "run"))
    config = {**report.info.config, "gate": {"rule": rule}}
    report = report.model_copy(update={"info": report.info.model_copy(update={"config": config})})
    assert ("The gate chose" in summary(report)) is gated
