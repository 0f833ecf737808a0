"""A second TrainBackend: each call is a process of its own; the call and its answer are files of JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import TypeAdapter

from internalize.config.schema import Config
from internalize.config.specs import TrainSpec
from internalize.records import Checkpoint, Drift, TrainSummary, Trajectory

TYPES = {
    "train": (TypeAdapter(tuple[TrainSpec]), TypeAdapter(tuple[Checkpoint, TrainSummary])),
    "average": (TypeAdapter(tuple[Checkpoint, Checkpoint, Path, str]), TypeAdapter(Checkpoint)),
    "drift": (TypeAdapter(tuple[Checkpoint, Path, tuple[Trajectory, ...]]), TypeAdapter(Drift)),
}


class SubprocessTraining:
    """`interfaces.TrainBackend` that asks `LocalTraining` in another process."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def train(
        self, spec: TrainSpec, progress: Callable[[int, int, float], None] | None = None
    ) -> tuple[Checkpoint, TrainSummary]:
        return await self._call("train", spec)

    async def average(self, a: Checkpoint, b: Checkpoint, root: Path, out: str) -> Checkpoint:
        return await self._call("average", a, b, root, out)

    async def drift(self, checkpoint: Checkpoint, root: Path, episodes: Sequence[Trajectory]) -> Drift:
        return await self._call("drift", checkpoint, root, tuple(episodes))

    async def _call(self, method: str, *arguments: object):
        with TemporaryDirectory() as name:
            (Path(name) / "config").write_text(self._config.model_dump_json())
            (Path(name) / "arguments").write_bytes(TYPES[method][0].dump_json(arguments))
            child = await asyncio.create_subprocess_exec(sys.executable, "-m", __name__, method, name)
            assert await child.wait() == 0
            return TYPES[method][1].validate_json((Path(name) / "answer").read_bytes())


if __name__ == "__main__":
    from internalize.training.policy import LocalPolicy, LocalTraining

    called, folder = sys.argv[1], Path(sys.argv[2])
    policy = LocalPolicy.of(Config.model_validate(json.loads((folder / "config").read_bytes())), check=False)
    given = TYPES[called][0].validate_json((folder / "arguments").read_bytes())
    answer = asyncio.run(getattr(LocalTraining(policy), called)(*given))
    (folder / "answer").write_bytes(TYPES[called][1].dump_json(answer))
