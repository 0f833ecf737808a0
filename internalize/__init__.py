"""internalize: LLM agents that learn from their own experience, again and again, without collapsing.

    import internalize as it

    config = it.load_config("recipes/demo.toml", ["iterations=1"])
    it.run(config, "runs/one")  # the whole loop; a run directory survives being killed
    it.open_run("runs/one").metrics

One stage at a time, on records: `open_workbench`, then `roll_out`, `extract`, `distill` and `evaluate`
(docs/quickstart.md). Names are imported when they are first used, so that this import is quick and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.schema import Config, load_config
    from .config.specs import RolloutSpec, TrainSpec
    from .environments.registry import make as make_environment
    from .errors import InternalizeError, UserError
    from .evaluation.metrics import SuiteMetrics
    from .experience.pool import ExperiencePool, load_pool, save_pool
    from .inference.scripted import ScriptedChat, ScriptedEngine
    from .interfaces import (
        Agent,
        ChatModel,
        CueExtractor,
        Engine,
        Environment,
        Episode,
        Judge,
        Policy,
        PolicyLoader,
        RolloutBackend,
        Selector,
        Situation,
        ToolFormat,
        Tracker,
        TrainBackend,
    )
    from .loop import run
    from .records import (
        Checkpoint,
        DistillExample,
        EvalResult,
        Experience,
        Message,
        PoolEdit,
        Step,
        Task,
        ToolCall,
        ToolSpec,
        TrainSummary,
        Trajectory,
    )
    from .stages.recorded import RecordedRun, open_run
    from .stages.run import Backends
    from .stages.scripted import scripted_backends
    from .stages.workbench import Workbench, distill, evaluate, extract, open_workbench, roll_out

__version__ = "0.1.0"
__all__ = [
    "Agent", "Backends", "ChatModel", "Checkpoint", "Config", "CueExtractor", "DistillExample", "Engine",
    "Environment", "Episode", "EvalResult", "Experience", "ExperiencePool", "InternalizeError", "Judge", "Message",
    "Policy", "PolicyLoader", "PoolEdit", "RecordedRun", "RolloutBackend", "RolloutSpec", "ScriptedChat",
    "ScriptedEngine", "Selector", "Situation", "Step", "SuiteMetrics", "Task", "ToolCall", "ToolFormat", "ToolSpec",
    "Tracker", "TrainBackend", "TrainSpec", "TrainSummary", "Trajectory", "UserError", "Workbench", "distill",
    "evaluate", "extract", "load_config", "load_pool", "make_environment", "open_run", "open_workbench", "roll_out",
    "run", "save_pool", "scripted_backends",
]  # fmt: skip

# Where each name lies. A function cannot be called `rollout`: importing the package of that name would replace it.
_HOMES = {
    "config.schema": "Config load_config",
    "config.specs": "RolloutSpec TrainSpec",
    "environments.registry": "make_environment",
    "errors": "InternalizeError UserError",
    "evaluation.metrics": "SuiteMetrics",
    "experience.pool": "ExperiencePool load_pool save_pool",
    "inference.scripted": "ScriptedChat ScriptedEngine",
    "interfaces": "Agent ChatModel CueExtractor Engine Environment Episode Judge Policy PolicyLoader RolloutBackend "
    "Selector Situation ToolFormat Tracker TrainBackend",
    "loop": "run",
    "records": "Checkpoint DistillExample EvalResult Experience Message PoolEdit Step Task ToolCall ToolSpec "
    "TrainSummary Trajectory",
    "stages.recorded": "RecordedRun open_run",
    "stages.run": "Backends",
    "stages.scripted": "scripted_backends",
    "stages.workbench": "Workbench distill evaluate extract open_workbench roll_out",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import the object behind a public name."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME[name]}")
    value = getattr(home, {"make_environment": "make"}.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted([*__all__, "__version__"])
