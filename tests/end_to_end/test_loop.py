"""The loop on a tiny random model: it finishes, measures, goes on, and refuses bad input."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from internalize import loop
from internalize.config.schema import Config, load_config
from internalize.environments import registry
from internalize.environments.validate import validate
from internalize.errors import ConfigError, UserError
from internalize.evaluation.behaviour import Behaviour
from internalize.evaluation.diagnostics import Diagnostics
from internalize.evaluation.metrics import SuiteMetrics, gathered, iteration_metrics
from internalize.evaluation.signs import Caution, Observed
from internalize.experience.extract.session import ExtractionInput
from internalize.experience.pool import load_pool
from internalize.records import EvalResult, Experience, PoolEdit, Trajectory
from internalize.report.panels import panels
from internalize.report.run_page import iterations_table
from internalize.report.run_report import load as load_report
from internalize.runs.store import read_jsonl, write_jsonl
from internalize.stages import diagnose
from internalize.stages import run as stages
from internalize.stages.backends import in_process
from internalize.training.policy import LocalPolicy
from tests.command import contents, without_digests
from tests.tiny import tiny_model, tiny_tokenizer
from tests.toy import Toy

SET = [
    "iterations=2", "env.name=toy", "rollout.tasks=3", "rollout.attempts=2", "rollout.max_steps=2",
    "rollout.max_action_tokens=6", "distill.tasks=2", "distill.epochs=1", "distill.lora_r=2", "distill.filter=none",
    "distill.divergence=sft", "evaluate.tasks=3", "evaluate.final_tasks=2", "compute.batch=2",
]  # fmt: skip


def policy(config: Config) -> LocalPolicy:
    return LocalPolicy(config, tiny_model(), tiny_tokenizer())


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))


def run(out: Path, *more: str, resume: bool = False) -> None:
    loop.run(
        load_config(None, [*SET, *more]),
        out,
        resume=resume,
        backends=lambda config, made: in_process(policy(config), made),
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.BUILTIN, "toy", registry.Builtin("tests.toy", "Toy", "boxes"))
        run(out)
    return out


def test_a_run_leaves_every_record_of_the_design(undisturbed: Path) -> None:
    names = {p.relative_to(undisturbed).as_posix() for p in undisturbed.rglob("*") if p.is_file()}
    for k in (1, 2):
        for name in ("rollouts.jsonl", "pool.json", "edits.jsonl", "teacher.jsonl", "train.jsonl", "train.json",
                     "checkpoint.json", "evaluations.jsonl", "gate.json"):  # fmt: skip
            assert f"iter-{k}/{name}" in names
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    measured = {(line["iteration"], line["suite"], line["mode"]) for line in lines}
    assert measured == {
        (0, "dev", "internalized"), (0, "test", "internalized"),  # the pool is empty: nothing to learn from it
        (1, "dev", "internalized"), (1, "dev", "in_context"), (2, "dev", "internalized"), (2, "dev", "in_context"),
        (2, "test", "internalized"), (2, "test", "in_context"),
    }  # fmt: skip
    assert load_report(undisturbed).finished == 2


def test_a_pool_is_measured_before_it_is_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more rule in each of two iterations, none in the third."""

    async def taught(config: Config, seen: ExtractionInput, *_: object) -> tuple[PoolEdit, ...]:
        k, rule = seen.iteration, Experience.new(f"When box {seen.iteration} is shut, open it.", "principle", "self")
        return () if k == 3 else (PoolEdit(op="ADD", item=rule),)

    monkeypatch.setattr(stages, "extract", taught)
    run(tmp_path / "run", "iterations=3")
    found = read_jsonl(tmp_path / "run" / "metrics.jsonl", SuiteMetrics)
    shown = [(line.iteration, line.pool_version) for line in found if (line.suite, line.mode) == ("dev", "in_context")]
    first, second, third = (load_pool(tmp_path / "run" / f"iter-{k}" / "pool.json").version for k in (1, 2, 3))
    assert second == third
    assert shown == [(0, first), (1, first), (1, second), (2, second), (3, second)]


def test_what_is_not_measured_changes_nothing_in_what_is_learnt(tmp_path: Path) -> None:
    """Four iterations, measured after the second and the last, beside the same with every one measured."""
    some, every = tmp_path / "some", tmp_path / "every"
    more = ("iterations=4", "evaluate.drift=0")
    run(some, *more, "evaluate.at=[2]")
    run(every, *more)
    for k in range(1, 5):
        for name in ("rollouts.jsonl", "pool.json", "teacher.jsonl", "train.jsonl"):
            assert timeless(some / f"iter-{k}" / name) == timeless(every / f"iter-{k}" / name)
    found, whole = (read_jsonl(path / "metrics.jsonl", SuiteMetrics) for path in (some, every))
    assert {line.iteration for line in found if line.suite == "dev"} == {0, 2, 4}
    same = {(line.iteration, line.suite, line.mode): line for line in whole}
    for line in found:
        assert line.success == same[line.iteration, line.suite, line.mode].success
    report = load_report(some)
    assert [(i.number, i.internalized is not None) for i in report.iterations] == [
        (0, True), (1, False), (2, True), (3, False), (4, True),
    ]  # fmt: skip
    assert (report.finished, report.planned, report.last_measured) == (4, 4, 4)
    rows = iterations_table(report).rows
    assert [row["success %"] == "-" for row in rows] == [False, True, False, True, False]
    before = contents(some)
    run(some, *more, "evaluate.at=[2]", resume=True)
    assert contents(some) == before


def timeless(path: Path) -> str:
    """A file of records without what the clock says."""
    return re.sub(r'"seconds": ?[0-9.e-]+', "", path.read_text())


def test_a_gate_needs_every_measurement() -> None:
    with pytest.raises(ConfigError, match=r"gate\.rule = 'no_worse' decides after every iteration, and evaluate\.at"):
        load_config(None, ["evaluate.at=[2]", "gate.rule=no_worse"])


def test_further_suites_are_measured_at_every_iteration_and_forgetting_is_told(tmp_path: Path) -> None:
    out, further = tmp_path / "run", "evaluate.further.old"
    run(out, f"{further}.env.name=toy", f"{further}.split=test", f"{further}.tasks=6", "evaluate.final_splits=[]")
    lines = [line for line in read_jsonl(out / "metrics.jsonl", SuiteMetrics) if line.suite == "old"]
    assert [(line.iteration, line.mode, line.results) for line in lines] == [(k, "internalized", 6) for k in range(3)]
    without_digests(out)
    for k in (0, 1, 2):  # as if the starter had solved all, and iteration 2 nothing: five tasks would show nothing
        path = out / f"iter-{k}" / "evaluations.jsonl"
        found = [r.model_copy(update={"success": float(k < 2)}) if r.suite == "old" else r
                 for r in read_jsonl(path, EvalResult)]  # fmt: skip
        write_jsonl(path, found)
        (path.parent / "diagnostics.jsonl").unlink()
    report = load_report(out)
    assert [[c.sign for c in i.cautions if c.suite == "old"] for i in report.iterations] == [
        [],
        [],
        ["suite_forgotten"],
    ]
    (panel,) = (p for p in panels(report) if p.title == "success on old, %")
    assert panel.curves["internalized"] == [(0, 100.0), (1, 100.0), (2, 0.0)]


def test_a_sign_is_told_when_it_first_fires_and_not_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def firing(earlier: Sequence[Observed], now: Observed) -> tuple[Caution, ...]:  # after every iteration
        raised = Caution(
            sign="pool_hurts", iteration=now.number, suite="dev", mode="in_context", value=-1, message="so"
        )
        return (raised,) if now.number else ()

    monkeypatch.setattr(diagnose, "cautions", firing)
    run(tmp_path / "run")
    assert [record.getMessage() for record in caplog.records if "pool_hurts" in record.getMessage()] == [
        "iteration 1: so (pool_hurts)"
    ]


def test_diagnostics_are_those_of_all_results_and_make_the_metrics(undisturbed: Path) -> None:
    """What is computed one measurement after the other is what all results together give."""
    folders = [undisturbed / f"iter-{k}" for k in range(3)]
    results = gathered(read_jsonl(folder / "evaluations.jsonl", EvalResult) for folder in folders)
    lines = read_jsonl(undisturbed / "metrics.jsonl", SuiteMetrics)
    assert lines == list(iteration_metrics(results, (), Config().evaluate.resamples, 0))
    found = [one for folder in folders for one in read_jsonl(folder / "diagnostics.jsonl", Diagnostics)]
    assert sorted(one.metrics.model_dump_json() for one in found) == sorted(line.model_dump_json() for line in lines)
    plain = next(one for one in found if (one.metrics.suite, one.metrics.iteration) == ("dev", 1))
    episodes = read_jsonl(undisturbed / "iter-1" / "episodes-dev-internalized-1.jsonl", Trajectory)
    assert plain.behaviour == Behaviour.of_all(episodes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("evaluate.further.dev.tasks=2", "evaluate.further.dev: that is the name of a split"),
        ("evaluate.further.a.env.name=nowhere", "nowhere"),
        ("evaluate.further.a.env.name=toy", "is both in training and in an evaluation suite"),
        ("evaluate.further.'/a'.tasks=2", "evaluate.further"),
    ],
)
def test_a_further_suite_that_cannot_be_is_one_sentence(tmp_path: Path, change: str, words: str) -> None:
    more = [change, "evaluate.further.a.split=train"] if change.endswith("toy") else [change]
    with pytest.raises(UserError, match=words):
        run(tmp_path / "run", *more)
    assert not (tmp_path / "run").exists()


def test_a_finished_run_is_left_alone(undisturbed: Path) -> None:
    before = contents(undisturbed)
    run(undisturbed, resume=True)
    assert contents(undisturbed) == before


def test_another_config_is_refused_by_name(undisturbed: Path) -> None:
    with pytest.raises(ConfigError, match=r"distill\.lr"):
        run(undisturbed, "distill.lr=0.1", resume=True)
    with pytest.raises(UserError, match="--resume"):
        run(undisturbed)


def test_a_corrupt_line_is_named_by_file_and_line(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(out)
    path = out / "iter-1" / "evaluations.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = lines[1][:40]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"iter-1/evaluations\.jsonl: is not as the stage evaluate of iteration 1"):
        run(out, resume=True)
    without_digests(out)
    with pytest.raises(UserError, match=r"iter-1/evaluations\.jsonl, line 2"):
        run(out, resume=True)


@pytest.mark.parametrize(
    "change",
    [
        ["extract.granularity=instance"], ["inject.pattern=global"], ["inject.pattern=none"],
        ["distill.divergence=reverse", "distill.generator=student"], ["distill.divergence=forward"],
        ["distill.lora_r=0", "distill.lr=1e-4"], ["gate.rule=no_worse"],
    ],
)  # fmt: skip
def test_every_switch_runs(change: list[str], tmp_path: Path) -> None:
    run(tmp_path / "run", "iterations=1", *change)
    assert load_report(tmp_path / "run").finished == 1


def test_an_empty_split_or_an_unknown_one_writes_nothing(tmp_path: Path) -> None:
    for change in ("rollout.split=nowhere", "env.options={size=0}"):
        with pytest.raises(UserError):
            run(tmp_path / "run", change)
        assert not (tmp_path / "run").exists()


def test_the_toys_reference_solutions_score() -> None:
    assert not any(row.failed for row in validate(Toy(), ("train", "dev", "test")))
