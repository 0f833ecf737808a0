"""How much memory this process has needed so far.

Left out: time (the store notes it with every stage) and the memory of other processes, such as a server's.
"""

from __future__ import annotations

import resource
import sys

_UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def peak_memory() -> int:
    """Greatest resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _UNIT


def peak_device_memory() -> int:
    """Greatest memory that tensors have taken on the current accelerator, bytes; 0 without one in use."""
    torch = sys.modules.get("torch")  # not imported for this: whoever has used a device has imported it
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())
