"""`internalize.training.launched` where accelerate is told that CPUs may shard weights, which it otherwise ignores."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType

from internalize.training.launched import main

_init = state.PartialState.__init__


def _as_accelerators(self: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, *args, **kwargs)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    state.PartialState.__init__ = _as_accelerators
    main(Path(sys.argv[1]))
