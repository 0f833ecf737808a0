"""Peak memory of this process; that of other processes, such as a server, is not included."""

from __future__ import annotations

import resource
import sys

_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def peak_memory() -> int:
    """Peak resident memory, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def peak_device_memory() -> int:
    """Peak memory of tensors on the current CUDA device, in bytes; 0 if none has been used."""
    torch = sys.modules.get("torch")  # importing it takes seconds, and whoever used a device has imported it
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())
