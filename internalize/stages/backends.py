"""The backends of a recipe: who plays episodes and who trains. In this process so far."""

from __future__ import annotations

from collections.abc import Callable

from internalize.config.schema import Config, EnvConfig
from internalize.interfaces import Environment
from internalize.rollout.local import LocalRollouts
from internalize.training.policy import LocalPolicy, LocalTraining

from .run import Backends


def local(config: Config, environments: Callable[[EnvConfig], Environment]) -> Backends:
    """Everything in this process, with the model that the recipe names. Raises UserError if it cannot be had."""
    return in_process(LocalPolicy.of(config), environments)


def in_process(policy: LocalPolicy, environments: Callable[[EnvConfig], Environment]) -> Backends:
    """Everything in this process, with a policy that is loaded already."""
    return Backends(
        rollouts=LocalRollouts(policy, environments),
        trainer=LocalTraining(policy),
        policies=policy,
        renderer=policy.renderer,
        starter=policy.starter,
        self_check=policy.self_check,
    )
