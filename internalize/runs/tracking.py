"""Metrics of a run for dashboards: each tracker is a few lines over its package, chosen by `[track] to`.

The run directory has all of them anyway, so a tracker that fails is dropped with a warning and the run goes on. A
resumed run sends its metrics again, to the same run of the dashboard if the package supports that.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from internalize.config.schema import TrackConfig
from internalize.errors import UserError, first_line
from internalize.interfaces import Tracker
from internalize.records import content_hash

from .store import TRACKING as FOLDER

_LOG = logging.getLogger(__name__)


class RecordingTracker:
    """A public fake that keeps everything it receives."""

    def __init__(self) -> None:
        self.facts: dict[str, str] = {}
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.figures: list[tuple[str, Path]] = []
        self.closed = False

    def describe(self, facts: Mapping[str, str]) -> None:
        """Keep the facts."""
        self.facts.update(facts)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the figures."""
        self.logged.append((step, dict(metrics)))

    def figure(self, name: str, path: Path) -> None:
        """Keep where the picture is."""
        self.figures.append((name, path))

    def close(self) -> None:
        """Record the end."""
        self.closed = True


class TensorBoardTracker:
    """Event files in the run directory; look at them with `tensorboard --logdir`."""

    def __init__(self, run: Path, project: str) -> None:  # noqa: ARG002 - it has no projects
        tensorboard: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = tensorboard.SummaryWriter(str(run / FOLDER / "tensorboard"))

    def describe(self, facts: Mapping[str, str]) -> None:
        """One text for each fact; TensorBoard keeps one for each name."""
        for name, fact in facts.items():
            self._writer.add_text(name, fact)
        self._writer.flush()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One scalar for each metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def figure(self, name: str, path: Path) -> None:
        """A picture, read with matplotlib, which drew it."""
        image: Any = importlib.import_module("matplotlib.image")
        self._writer.add_image(name, image.imread(path), dataformats="HWC")

    def close(self) -> None:
        """End the event file."""
        self._writer.close()


class MlflowTracker:
    """A run in an MLflow file store in the run directory, or on the server that MLFLOW_TRACKING_URI names.

    Look at the store with `MLFLOW_ALLOW_FILE_STORE=true mlflow ui --backend-store-uri`: MLflow refuses file stores
    otherwise, and a database would need many more packages.
    """

    def __init__(self, run: Path, project: str) -> None:
        tracking: Any = importlib.import_module("mlflow.tracking")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        store = os.environ.get("MLFLOW_TRACKING_URI") or (run / FOLDER / "mlflow").resolve().as_uri()
        self._client = tracking.MlflowClient(store)
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        found = self._client.search_runs([experiment], f"attributes.run_name = '{_id(run)}'", max_results=1)
        started = found[0] if found else self._client.create_run(experiment, run_name=_id(run))
        self._run = started.info.run_id

    def describe(self, facts: Mapping[str, str]) -> None:
        """One tag for each fact: parameters must not change, but a resumed run may have other dashboards."""
        for name, fact in facts.items():
            self._client.set_tag(self._run, name, fact)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One value for each metric."""
        for name, value in metrics.items():
            self._client.log_metric(self._run, name, value, step=step)

    def figure(self, name: str, path: Path) -> None:
        """An artifact in the folder `name`."""
        self._client.log_artifact(self._run, str(path), name)

    def close(self) -> None:
        """End the run."""
        self._client.set_terminated(self._run)


class WandbTracker:
    """An offline run of Weights & Biases in the run directory; `wandb sync` uploads it."""

    def __init__(self, run: Path, project: str) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        (run / FOLDER).mkdir(exist_ok=True)
        given = {"project": project, "name": run.resolve().name, "id": _id(run), "dir": str(run / FOLDER)}
        self._run = self._wandb.init(**given, mode="offline", resume="allow")
        self._run.define_metric("*", step_metric="step")  # W&B's own steps must not decrease

    def describe(self, facts: Mapping[str, str]) -> None:
        """Update the run's config."""
        self._run.config.update(dict(facts), allow_val_change=True)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._run.log({"step": step, **metrics})

    def figure(self, name: str, path: Path) -> None:
        """An image."""
        self._run.log({name: self._wandb.Image(str(path))})

    def close(self) -> None:
        """Write the rest and end the run."""
        self._run.finish()


class TrackioTracker:
    """A local run of trackio; look at it with `trackio show`. Its files are in the folder TRACKIO_DIR.

    Its config is sent with the first metrics; later facts become a text among the metrics.
    """

    def __init__(self, run: Path, project: str) -> None:
        self._began = False
        self._trackio: Any = importlib.import_module("trackio")
        self._run = self._trackio.init(project=project, name=_id(run), resume="allow", embed=False)

    def describe(self, facts: Mapping[str, str]) -> None:
        """Keep the config, or send texts later."""
        if self._began:
            self._run.log({name: self._trackio.Markdown(fact) for name, fact in facts.items()})
        else:
            self._run.config.update(facts)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """One row."""
        self._began = True
        self._run.log(dict(metrics), step=step)

    def figure(self, name: str, path: Path) -> None:
        """An image."""
        self._run.log({name: self._trackio.Image(str(path))})

    def close(self) -> None:
        """Write the rest and end the run."""
        self._run.finish()


TRACKERS: dict[str, tuple[Callable[[Path, str], Tracker], str]] = {  # by name in recipes, with the package
    "tensorboard": (TensorBoardTracker, "tensorboard"),
    "trackio": (TrackioTracker, "trackio"),
    "wandb": (WandbTracker, "wandb"),
    "mlflow": (MlflowTracker, "mlflow"),
}


class Trackers:
    """Several trackers as one. A tracker that raises gets no further calls."""

    def __init__(self, trackers: Mapping[str, Tracker]) -> None:
        self._working = dict(trackers)

    def describe(self, facts: Mapping[str, str]) -> None:
        """As `Tracker.describe`, for all."""
        self._each(lambda tracker: tracker.describe(facts))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """As `Tracker.log`, for all."""
        self._each(lambda tracker: tracker.log(step, metrics))

    def figure(self, name: str, path: Path) -> None:
        """As `Tracker.figure`, for all."""
        self._each(lambda tracker: tracker.figure(name, path))

    def close(self) -> None:
        """As `Tracker.close`, for all."""
        self._each(lambda tracker: tracker.close())

    def _each(self, tell: Callable[[Tracker], None]) -> None:
        for name, tracker in [*self._working.items()]:
            try:
                tell(tracker)
            except Exception as error:  # noqa: BLE001 - the classes of other packages cannot be named here
                del self._working[name]
                _LOG.warning("track.to: %s failed and is left out from here on: %s", name, first_line(error))


def require_packages(config: TrackConfig) -> None:
    """Raises UserError naming the first package that is not installed."""
    for name in config.to:
        if find_spec(TRACKERS[name][1]) is None:
            raise UserError(f"track.to: {name!r} needs a package: pip install {TRACKERS[name][1]}")


@contextmanager
def tracking(config: TrackConfig, run: Path) -> Iterator[Tracker]:
    """The trackers of a recipe for the run in the directory `run`; they are closed at the end of the block."""
    made: dict[str, Tracker] = {}
    for name in config.to:
        try:
            made[name] = TRACKERS[name][0](run, config.project)
        except Exception as error:  # noqa: BLE001 - as above
            _LOG.warning("track.to: %s cannot be started: %s", name, first_line(error))
    tracker = Trackers(made)
    try:
        yield tracker
    finally:
        tracker.close()


def _id(run: Path) -> str:
    """The run's name on a dashboard, which is the same after a resume."""
    path = run.resolve()
    return f"{path.name}-{content_hash(str(path))}"
