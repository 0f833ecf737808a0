"""What workers of Ray play with in tests; they import this module."""

from __future__ import annotations

import os
import signal

from internalize.config.schema import Config
from internalize.environments import registry
from internalize.rollout.ray import Playing, in_worker


def toy_worker(config: Config) -> Playing:
    registry.BUILTIN["toy"] = registry.Builtin("tests.toy", "Toy", "boxes")
    return in_worker(config)


def doomed(config: Config) -> Playing:
    """A worker that dies at its first shard."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def process() -> int:
    return os.getpid()
