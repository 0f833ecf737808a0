"""The backends of a recipe: this process or Ray workers play episodes; this process or launched ones train."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from internalize.config.schema import Config, EnvConfig
from internalize.errors import UserError
from internalize.experience import persons
from internalize.inference.endpoints import Endpoints
from internalize.interfaces import Environment
from internalize.rollout.local import LocalRollouts
from internalize.rollout.ray import RayRollouts

from .run import Backends

if TYPE_CHECKING:
    from internalize.training.policy import LocalPolicy

_PACKAGES = ("torch", "transformers", "peft", "accelerate")


def require(config: Config) -> None:
    """Raise what `local` would raise about packages and endpoints, without importing torch, which takes seconds."""
    if missing := [package for package in _PACKAGES if find_spec(package) is None]:
        raise UserError(
            f"a model in this process needs the extra 'train' (no {missing[0]}): pip install 'internalize[train]'"
        )
    if config.compute.rollout == "ray" and find_spec("ray") is None:
        raise UserError("compute.rollout = 'ray' needs the extra 'ray': pip install 'internalize[ray]'")
    if config.compute.engine == "vllm":
        _require_vllm(config)
    persons.require(config.redact)
    Endpoints(config).check()


def _require_vllm(config: Config) -> None:
    """Raise UserError if the run cannot start its own vLLM servers, or its rollout workers cannot reach them."""
    python = config.compute.vllm.python
    if python and not os.access(Path(python).expanduser(), os.X_OK):
        raise UserError(f"compute.vllm.python = {python!r}: is no program that can be run")
    if not python and find_spec("vllm") is None:
        raise UserError("compute.engine = 'vllm': vLLM is not installed here; name its Python in compute.vllm.python")
    if find_spec("openai") is None:
        raise UserError("compute.engine = 'vllm' needs the extra 'server': pip install 'internalize[server]'")
    if config.compute.rollout == "ray" and (address := os.environ.get("RAY_ADDRESS")):
        raise UserError(
            f"compute.engine = 'vllm' serves this machine alone, and RAY_ADDRESS = {address!r} may have workers on "
            "others: start vLLM there and name it in compute.endpoint"
        )


def local(config: Config, environments: Callable[[EnvConfig], Environment]) -> Backends:
    """The backends of a recipe in this process, with the model loaded. Raises UserError if it cannot be loaded."""
    require(config)
    from internalize.training.policy import LocalPolicy  # noqa: PLC0415 - imports torch
    from internalize.training.together import require_shares  # noqa: PLC0415

    if config.compute.train == "accelerate":  # before the model is loaded, which takes long
        require_shares(config.distill, config.compute.devices)
    policy = LocalPolicy.of(config)
    made = in_process(policy, environments)
    if config.compute.rollout == "ray":
        made = replace(made, rollouts=RayRollouts(config, policy.endpoints, served=policy.served))
    if config.compute.train == "accelerate":
        from internalize.training.launched import LaunchedTraining  # noqa: PLC0415 - imports torch

        made = replace(made, trainer=LaunchedTraining(policy))
    return made


def in_process(policy: LocalPolicy, environments: Callable[[EnvConfig], Environment]) -> Backends:
    """The backends in this process for a policy that is already loaded."""
    from internalize.training.policy import LocalTraining  # noqa: PLC0415 - imports torch

    return Backends(
        rollouts=LocalRollouts(policy, environments),
        trainer=LocalTraining(policy),
        policies=policy,
        renderer=policy.renderer,
        starter=policy.starter,
        self_check=policy.self_check,
        close=policy.close,
    )
