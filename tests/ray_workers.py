"""What workers of Ray play with in tests; they import this module."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from internalize import loop
from internalize.config.schema import Config
from internalize.environments import registry
from internalize.errors import Incomplete
from internalize.rollout.ray import Playing, in_worker


def toy_worker(config: Config) -> Playing:
    registry.BUILTIN["toy"] = registry.Builtin("tests.toy", "Toy", "boxes")
    return in_worker(config)


def doomed(config: Config) -> Playing:
    """A worker that dies at its first shard."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def study_run(config: Config, folder: Path) -> None:
    """In a worker: the first kills it, the second stops with work left, the others play."""
    registry.BUILTIN["toy"] = registry.Builtin("tests.toy", "Toy", "boxes")
    if not folder.parent.exists():
        folder.parent.mkdir()
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 1:
        raise Incomplete("the budget is spent")
    loop.run(config, folder, resume=True)


def process() -> int:
    return os.getpid()
