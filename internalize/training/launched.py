"""Training by several processes that a launcher starts: input and result are files, progress is lines of output.

`LaunchedTraining` starts this module under torch's launcher, one process a device; transformers and accelerate then do
what `distill.trainer` says (DDP, or FSDP with `fsdp`). A process ends itself when the one that launched it is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from internalize.config.specs import TrainSpec
from internalize.errors import Incomplete, InternalizeError, UserError
from internalize.records import Checkpoint, Drift, TrainSummary, Trajectory
from internalize.runs import names
from internalize.runs.store import write_atomic

from .policy import LocalPolicy, LocalTraining
from .selection import SCORERS

if TYPE_CHECKING:
    from internalize.config.schema import Config

_SPEC, _ANSWER, _ERROR, _LOG = "spec.json", "answer.json", "error.json", "log.txt"
_RESULT = TypeAdapter(tuple[Checkpoint, TrainSummary])
_PARENT, _SCORER = "INTERNALIZE_LAUNCHED_BY", "INTERNALIZE_SCORER"


class LaunchedTraining:
    """`interfaces.TrainBackend` over `compute.devices` processes; `local` averages and measures drift."""

    def __init__(self, policy: LocalPolicy, module: str = __name__) -> None:
        self._policy, self._module, self._local = policy, module, LocalTraining(policy)

    async def train(
        self, spec: TrainSpec, progress: Callable[[int, int, float], None] | None = None
    ) -> tuple[Checkpoint, TrainSummary]:
        """Launch, wait and read the result. Raises the training's own error, or Incomplete if it was killed."""
        with tempfile.TemporaryDirectory(prefix=names.LAUNCHED, dir=spec.root) as name:
            folder = Path(name).resolve()
            write_atomic(folder / _SPEC, spec.model_dump_json())
            async with self._policy.asleep():
                code = await self._launch(folder, spec.config.compute.devices, progress)
            if (folder / _ANSWER).exists():
                return _RESULT.validate_json((folder / _ANSWER).read_bytes())
            if (folder / _ERROR).exists():
                kind, message = json.loads((folder / _ERROR).read_text(encoding="utf-8"))
                raise (UserError if kind == UserError.__name__ else InternalizeError)(message)
            lines = (folder / _LOG).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        told = (line.strip() for line in reversed(lines) if "Error: " in line)
        reason = next((line for line in told if "ChildFailedError" not in line), "no reason given")  # the launcher's
        raise Incomplete(f"the training on several processes was ended (exit code {code}): {reason[:300]}")

    async def average(self, a: Checkpoint, b: Checkpoint, root: Path, out: str) -> Checkpoint:
        """The mean of two checkpoints."""
        return await self._local.average(a, b, root, out)

    async def drift(self, checkpoint: Checkpoint, root: Path, episodes: Sequence[Trajectory]) -> Drift:
        """How far a checkpoint is from the starter."""
        return await self._local.drift(checkpoint, root, episodes)

    async def _launch(self, folder: Path, number: int, progress: Callable[[int, int, float], None] | None) -> int:
        launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(number)]
        check = self._policy.self_check
        told = {_PARENT: str(os.getpid()), _SCORER: check.scorer if check else next(iter(SCORERS))}
        with (folder / _LOG).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *launcher, "-m", self._module, str(folder),
                stdout=asyncio.subprocess.PIPE, stderr=log, env=os.environ | told,
            )  # fmt: skip
            try:
                assert process.stdout
                async for line in process.stdout:
                    if progress and line.startswith(b"["):
                        step, of, loss = json.loads(line)
                        progress(step, of, loss)
                return await process.wait()
            finally:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()


def main(folder: Path) -> None:
    """Run one of the processes."""
    threading.Thread(target=_end_with, args=(int(os.environ[_PARENT]),), daemon=True).start()
    spec = TrainSpec.model_validate_json((folder / _SPEC).read_bytes())
    first = os.environ.get("RANK", "0") == "0"
    try:
        policy = LocalPolicy.of(_without_server(spec.config), check=False, scorer=SCORERS[os.environ[_SCORER]])
        found = asyncio.run(LocalTraining(policy).train(spec, _tell if first else None))
    except InternalizeError as error:
        if first:
            kind = UserError if isinstance(error, UserError) else InternalizeError
            write_atomic(folder / _ERROR, json.dumps([kind.__name__, str(error)]))
        raise
    if first:
        write_atomic(folder / _ANSWER, _RESULT.dump_json(found))


def _without_server(config: Config) -> Any:
    """The recipe without a server that acts, which only rollouts need."""
    compute = config.compute.model_copy(update={"endpoint": "", "engine": "auto", "train": "local"})
    model = config.model.model_copy(update={"endpoint": ""})
    return config.model_copy(update={"compute": compute, "model": model})


def _tell(step: int, of: int, loss: float) -> None:
    sys.stdout.write(json.dumps([step, of, loss]) + "\n")
    sys.stdout.flush()


def _end_with(launched_by: int) -> None:
    """End this process when its launcher has died, because a resumed run would write the same files."""
    while True:
        try:
            os.kill(launched_by, 0)
        except ProcessLookupError:
            os._exit(1)
        time.sleep(1.0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
