"""Reads trajectories of this program as a log: several files become one, with the checks of an import."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError

from internalize.errors import DataError
from internalize.records import Trajectory
from internalize.runs.files import first_problem, record_of

from .reading import Session


def recognizes(head: Sequence[dict[str, Any]]) -> bool:
    """Whether the first lines of a file are trajectories."""
    return {"task_id", "checkpoint", "prompt"} <= head[0].keys()


def read(value: Any, session: Session) -> Iterator[Trajectory]:  # noqa: ARG001 - as every format's reader
    """The trajectory itself. Raises DataError."""
    try:
        yield record_of(json.dumps(value).encode(), Trajectory)
    except ValidationError as error:
        raise DataError(first_problem(error)) from error
