"""Trackers get the figures of a run under plain names, cannot change its result, and cannot break it."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from internalize import loop
from internalize.config.schema import Config, TrackConfig, load_config
from internalize.errors import UserError
from internalize.evaluation.metrics import SuiteMetrics, figures
from internalize.evaluation.stats import Interval, Share
from internalize.interfaces import Tracker
from internalize.report.publish import write_run
from internalize.runs import tracking
from internalize.runs.tracking import FOLDER, TRACKERS, RecordingTracker, TensorBoardTracker, require_packages
from internalize.stages.scripted import scripted_backends
from tests.toy import Toy

SET = ["env.name=toy", "iterations=1", "rollout.tasks=2", "evaluate.tasks=2", "evaluate.final_splits=[]",
       "distill.epochs=0", "inject.pattern=none"]  # fmt: skip
ONE = Interval(mean=0.5, low=0.2, high=0.8, n=4)


def line(**more: Any) -> SuiteMetrics:
    fixed = {"iteration": 2, "suite": "dev", "mode": "internalized", "checkpoint": "c", "pool_version": None}
    return SuiteMetrics(**fixed, success=ONE, results=4, unscored=0, **more)


def run(out: Path, *changes: str, resume: bool = False) -> Config:
    config = load_config(None, [*SET, *changes])
    made = scripted_backends(Toy(), lambda checkpoint, messages: "answer[3]")
    loop.run(config, out, resume=resume, backends=lambda *_: made)
    return config


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> RecordingTracker:
    """Takes the place of TensorBoard."""
    monkeypatch.setattr("internalize.environments.registry.make", lambda *_: Toy())
    tracker = RecordingTracker()
    monkeypatch.setitem(TRACKERS, "tensorboard", (lambda run, project: tracker, "json"))
    return tracker


def test_figures_have_plain_names() -> None:
    found = figures(line(turns=2.5, retained=Share(value=0.7, low=0.1, high=1.0, n=4), families={"box": ONE}))
    named = {name.removeprefix("dev/internalized/"): value for name, value in found.items()}
    assert {k: named[k] for k in ("success", "turns", "retained", "success of box", "results")} == {
        "success": 0.5, "turns": 2.5, "retained": 0.7, "success of box": 0.5, "results": 4.0,
    }  # fmt: skip
    assert not named.keys() & {"iteration", "suite", "mode", "checkpoint", "pool_version", "gain_over_starter"}


def test_every_figure_is_told_once_and_the_tracker_is_closed(tmp_path: Path, recording: RecordingTracker) -> None:
    run(tmp_path / "run", 'track.to=["tensorboard"]')
    told = [(iteration, name) for iteration, metrics in recording.logged for name in metrics]
    assert (0, "dev/internalized/success") in told
    assert (1, "dev/internalized/success") in told
    assert len(told) == len(set(told))
    assert recording.closed


def test_the_work_of_an_iteration_is_told_with_the_recipe_and_where_checkpoints_come_from(
    tmp_path: Path, recording: RecordingTracker
) -> None:
    """Also by a string in place of a list, under the name that transformers has for it."""
    run(tmp_path / "run", "report_to=tensorboard", "rollout.tasks=3")
    found = {
        name: value for iteration, metrics in recording.logged for name, value in metrics.items() if iteration == 1
    }
    assert {"pool/items", "pool/add", "training/steps", "gate/kept", "seconds/rollout", "seconds/evaluate",
            "cost/sampled tokens", "cost/peak memory", "dev/internalized/success low"} <= found.keys()  # fmt: skip
    assert found["cost/episodes"] == 3 * 2, "two attempts at each task"
    assert (recording.facts["rollout.tasks"], recording.facts["track.to"]) == ("3", "['tensorboard']")
    made, starter = (read_checkpoint(tmp_path / "run", k) for k in (1, 0))
    assert recording.facts["checkpoint 1"].startswith(f"{made} from {starter}, pool ")
    assert recording.facts["checkpoint 1"].endswith(", kept")


def read_checkpoint(run: Path, k: int) -> str:
    """The id of the checkpoint of iteration 1, or of its parent."""
    found = json.loads((run / "iter-1" / "checkpoint.json").read_text())
    return str(found["id"] if k else found["parent"])


def test_a_loss_is_told_at_its_optimizer_step(tmp_path: Path, recording: RecordingTracker) -> None:
    run(tmp_path / "run", "track.to=tensorboard")
    curve = [(step, *metrics) for step, metrics in recording.logged if any(n.startswith("train/") for n in metrics)]
    assert curve == [(1, "train/iteration 1: distil/loss")]


def test_tracking_changes_no_result_and_may_change_on_resume(tmp_path: Path, recording: RecordingTracker) -> None:
    plain = run(tmp_path / "plain")
    tracked = run(tmp_path / "tracked", 'track.to=["tensorboard"]')
    assert plain.digest == tracked.digest
    metrics = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("plain", "tracked")]
    assert metrics[0] == metrics[1]
    run(tmp_path / "plain", 'track.to=["tensorboard"]', resume=True)
    assert tracked.changed_from(plain.dump()) == []


def test_a_tracker_that_fails_is_left_out_with_one_warning(
    tmp_path: Path, recording: RecordingTracker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(iteration: int, metrics: object) -> None:
        raise OSError("the disk of the dashboard is full")

    monkeypatch.setattr(recording, "log", broken)
    run(tmp_path / "run", 'track.to=["tensorboard"]')
    assert [r.getMessage() for r in caplog.records if "dashboard is full" in r.getMessage()] == [
        "track.to: tensorboard failed and is left out from here on: the disk of the dashboard is full"
    ]
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_missing_package_is_refused_before_anything_is_written(
    tmp_path: Path, recording: RecordingTracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TRACKERS, "wandb", (TensorBoardTracker, "no_such_package"))
    with pytest.raises(UserError, match="'wandb' needs a package: pip install no_such_package"):
        run(tmp_path / "run", 'track.to=["wandb"]')
    assert not (tmp_path / "run").exists()
    require_packages(TrackConfig())
    with pytest.raises(UserError, match=r"track\.to"):
        load_config(None, ['track.to=["elsewhere"]'])


FACTS = {"rollout.tasks": "64", "checkpoint 1": "b from a"}


def told(name: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two iterations and a picture, told in two parts, as by a run that was resumed."""
    monkeypatch.setenv("TRACKIO_DIR", str(out / FOLDER / "trackio"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # so that it is taken back after the test
    package = TRACKERS[name][1]
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    image = pytest.importorskip("matplotlib.image")
    image.imsave(out / "figure.png", [[0.0, 1.0], [1.0, 0.0]])
    for iteration in (0, 1):
        with tracking.tracking(TrackConfig(to=(name,)), out) as tracker:
            tracker.describe({"rollout.tasks": "64"})
            tracker.log(iteration, {"dev/internalized/success": 0.25 + iteration / 2})
            tracker.log(7, {"train/iteration 1/loss": 0.5})
            tracker.describe({"checkpoint 1": "b from a"})
            tracker.figure("success", out / "figure.png")
            assert tracker._working  # nothing failed


def of_tensorboard(out: Path) -> list[tuple[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # noqa: PLC0415

    events = EventAccumulator(str(out / FOLDER / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["success"]
    assert {name.removesuffix("/text_summary") for name in events.Tags()["tensors"]} == FACTS.keys()
    assert [event.step for event in events.Scalars("train/iteration 1/loss")] == [7, 7]
    return [(event.step, event.value) for event in events.Scalars("dev/internalized/success")]


def of_mlflow(out: Path) -> list[tuple[int, float]]:
    from mlflow.tracking import MlflowClient  # noqa: PLC0415

    client = MlflowClient((out / FOLDER / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("internalize")
    (one,) = client.search_runs([experiment.experiment_id])
    assert [file.path for file in client.list_artifacts(one.info.run_id, "success")] == ["success/figure.png"]
    assert FACTS.items() <= one.data.tags.items()
    assert one.data.metrics["train/iteration 1/loss"] == 0.5
    return [(m.step, m.value) for m in client.get_metric_history(one.info.run_id, "dev/internalized/success")]


def of_trackio(out: Path) -> list[tuple[int, float]]:
    from trackio.sqlite_storage import SQLiteStorage  # noqa: PLC0415

    (name,) = [run for run in SQLiteStorage.get_runs("internalize") if run.startswith(out.name)]
    rows = SQLiteStorage.get_logs("internalize", name)
    assert SQLiteStorage.get_run_config("internalize", name)["rollout.tasks"] == "64"
    assert [row["checkpoint 1"]["_value"] for row in rows if "checkpoint 1" in row] == ["b from a"] * 2
    assert [row["step"] for row in rows if "train/iteration 1/loss" in row] == [7, 7]
    found = [row for row in rows if "dev/internalized/success" in row]
    return [(row["step"], row["dev/internalized/success"]) for row in found]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "read"), [("tensorboard", of_tensorboard), ("mlflow", of_mlflow), ("trackio", of_trackio)]
)
def test_what_a_dashboard_holds(
    name: str, read: Callable[[Path], list[tuple[int, float]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(name, tmp_path, monkeypatch)
    assert read(tmp_path) == [(0, 0.25), (1, 0.75)]


def test_wandb_takes_figures_facts_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told("wandb", tmp_path, monkeypatch)
    assert any((tmp_path / FOLDER).rglob("*"))


def test_the_fake_is_a_tracker() -> None:
    tracker: Tracker = RecordingTracker()
    tracker.figure("success", Path("figure.png"))
    assert tracker.figures == [("success", Path("figure.png"))]


def test_the_picture_of_a_report_is_shown(tmp_path: Path, recording: RecordingTracker) -> None:
    pytest.importorskip("matplotlib")
    run(tmp_path / "run", 'track.to=["tensorboard"]')
    write_run(tmp_path / "run")
    assert recording.figures == [("success", tmp_path / "run" / "figure.png")]
