"""Plays the runs of a study on workers of Ray, a run in a process of its own, on any machine of a cluster.

A run directory is the only state, so all machines must see the study's folder. If a worker is lost, another worker
resumes its run from what is on disk.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from internalize.config.compute import ComputeConfig
from internalize.config.schema import Config
from internalize.errors import Busy, Incomplete, InfrastructureError, InternalizeError, UserError, first_line
from internalize.rollout.local import TRIES
from internalize.rollout.ray import start

from .study import Play

_LOG = logging.getLogger(__name__)
_KINDS = (Busy, Incomplete, UserError, InfrastructureError, InternalizeError)  # subclasses of these may not pickle
Problem = tuple[type[InternalizeError], str]


@contextmanager
def on_ray(work: Play, workers: int, gpus: float = 0.0) -> Iterator[Play]:
    """Yields a function that has a run played by `work` on one of `workers` workers, each with `gpus` GPUs.

    Raises UserError without Ray, or if the cluster that RAY_ADDRESS names does not answer.
    """
    try:
        import ray  # noqa: PLC0415 - an extra
        from ray.exceptions import RayError  # noqa: PLC0415
    except ImportError as error:
        raise UserError("workers of Ray need the extra 'ray': pip install 'internalize[ray]'") from error
    start(ComputeConfig(replicas=workers, gpus=gpus))
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_problem_of)

    def play(config: Config, folder: Path) -> None:
        problem = None
        for number in range(TRIES):
            try:
                problem = ray.get(remote.remote(work, config, folder.absolute()))
                break
            except RayError as error:
                if number == TRIES - 1:
                    raise Incomplete(f"{TRIES} workers were lost with this run ({first_line(error)})") from error
                _LOG.warning("%s: its worker was lost (%s); another goes on with it", folder, first_line(error))
        if problem:
            kind, message = problem
            raise kind(message)

    try:
        yield play
    finally:
        ray.shutdown()  # else a thread that waits for a run would keep this process alive


def _problem_of(work: Play, config: Config, folder: Path) -> Problem | None:
    """In the worker: the error that ended the run early, if any."""
    try:
        work(config, folder)
    except InternalizeError as error:
        return next(kind for kind in _KINDS if isinstance(error, kind)), str(error)
    return None
