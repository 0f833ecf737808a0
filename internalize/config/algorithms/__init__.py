"""Named algorithms, for `distill.algorithm`. A new one is a file here and a line in `ALGORITHMS`.

An algorithm is data: a value for each switch. The trainer reads the switches and knows no algorithm by name, so
training/ has no code for single algorithms, and recipes are validated here without importing torch.
"""

from internalize.config.regime import Algorithm

from .gkd import GKD
from .grpo import GRPO
from .off_policy import OFF_POLICY
from .on_policy import ON_POLICY
from .opsd import OPSD
from .rft import RFT
from .sdft import SDFT

ALGORITHMS: dict[str, Algorithm] = {
    "off_policy": OFF_POLICY,
    "on_policy": ON_POLICY,
    "sdft": SDFT,
    "opsd": OPSD,
    "gkd": GKD,
    "rft": RFT,
    "grpo": GRPO,
}
