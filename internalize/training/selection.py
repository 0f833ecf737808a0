"""Selects the engine and the scorer of a model: the fastest ones that agree with plain passes of it.

The name of the architecture does not matter. Weights of a shorter type are compared in float32 if memory allows,
because in a shorter type rounding can hide a mistake or look like one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from torch import nn

from internalize.config.schema import Config
from internalize.errors import UserError
from internalize.inference.local import LocalEngine
from internalize.inference.plain import PlainEngine
from internalize.inference.self_check import (
    check_engine,
    check_scores,
    in_float32,
    plain_reference,
    require_finite,
    require_reach,
)
from internalize.interfaces import Engine, Renderer, Scorer
from internalize.records import SelfCheck

from .forked import ForkedScorer
from .scoring import PACKED, PackedScorer, example_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EngineMaker = Callable[["PreTrainedModel", Renderer, Config], Engine]
Choice = TypeVar("Choice")
_LOG = logging.getLogger(__name__)


def _limits(config: Config, batch: int) -> dict[str, Any]:
    rollout, context = config.rollout, config.model.max_context
    limits = {"max_action_tokens": rollout.max_action_tokens, "temperature": rollout.temperature}
    return limits | {"batch": batch, "max_context": context}


def slot_engine(model: PreTrainedModel, renderer: Renderer, config: Config) -> Engine:
    """Samples many conversations in one flattened pass and keeps their keys and values; replaces the attention."""
    return LocalEngine(model, renderer, **_limits(config, config.compute.batch))


def plain_engine(model: PreTrainedModel, renderer: Renderer, config: Config) -> Engine:
    """Samples with the model's own forward and cache, many conversations as one padded batch."""
    return PlainEngine(model, renderer, **_limits(config, config.compute.batch))


def single_engine(model: PreTrainedModel, renderer: Renderer, config: Config) -> Engine:
    """`plain_engine` with one conversation at a time: no padding, and the model counts positions itself."""
    return PlainEngine(model, renderer, **_limits(config, 1))


def token_engine(model: PreTrainedModel, renderer: Renderer, config: Config) -> Engine:
    """`single_engine` that also reads tokens after a cached prefix one by one."""
    return PlainEngine(model, renderer, singly=True, **_limits(config, 1))


def placed_engine(model: PreTrainedModel, renderer: Renderer, config: Config) -> Engine:
    """`token_engine` that passes positions: some caches miscount their length (MiniMax-01's, by its first layer)."""
    return PlainEngine(model, renderer, singly=True, placed=True, **_limits(config, 1))


# In order of speed.
ENGINES: Mapping[str, EngineMaker] = {
    "slots": slot_engine,
    "plain": plain_engine,
    "plain, one at a time": single_engine,
    "plain, token by token": token_engine,
    "plain, token by token, placed": placed_engine,
}
SCORERS: Mapping[str, Scorer] = {
    "packed": PACKED,
    "forked": ForkedScorer(),
    "forked, its own positions": ForkedScorer(positions=False),
    "forked, token by token": ForkedScorer(positions=False, singly=True),
    "forked, token by token, placed": ForkedScorer(singly=True),
}


def engines_of(chosen: str) -> Mapping[str, EngineMaker]:
    """The engines that `compute.engine` allows: one kind, or all."""
    return {name: make for name, make in ENGINES.items() if name.startswith(chosen)} or ENGINES


def select_paths(
    model: Any,
    renderer: Renderer,
    config: Config,
    ids: Sequence[int],
    engines: Mapping[str, EngineMaker] = ENGINES,
    scorers: Mapping[str, Scorer] = SCORERS,
) -> SelfCheck:
    """The first engine and scorer that agree with plain passes on random `ids`, and their differences.

    Raises UserError with the difference of the last one if none agrees.
    """
    started = time.monotonic()

    def sampled(name: str) -> float:
        return check_engine(model, engines[name](model, renderer, config), ids)

    with in_float32(model) as upcast:
        engine, logprobs = _first(model, engines, sampled, config.model.max_context)
        scorer, (scores, gradients) = select_scorer(model, ids, config.model.max_context, scorers)
    if upcast:
        require_finite(
            model, engines[engine](model, renderer, config), partial(example_logits, scorer=scorers[scorer]), ids
        )
    found = SelfCheck(
        engine=engine, scorer=scorer, logprobs=logprobs, scores=scores, gradients=gradients,
        seconds=round(time.monotonic() - started, 3),
    )  # fmt: skip
    _LOG.info(
        "self-check: engine %s, scorer %s; log-probabilities differ by %.1e, scores by %.1e, gradients by %.1e; %.1f s",
        engine, scorer, logprobs, scores, gradients, found.seconds,
    )  # fmt: skip
    return found


def select_scorer(
    model: nn.Module, ids: Sequence[int], max_context: int, scorers: Mapping[str, Scorer] = SCORERS
) -> tuple[str, tuple[float, float]]:
    """The first scorer that agrees with plain passes, and the differences of its scores and gradients."""
    plain = plain_reference(model, ids)
    return _first(
        model,
        scorers,
        lambda name: check_scores(model, partial(example_logits, scorer=scorers[name]), plain),
        max_context,
    )


def _first(
    model: nn.Module, candidates: Mapping[str, Any], check: Callable[[str], Choice], max_context: int
) -> tuple[str, Choice]:
    failure = UserError(f"{type(model).__name__} cannot be used")
    for name, candidate in candidates.items():
        replaces_attention = candidate is slot_engine or isinstance(candidate, PackedScorer)
        try:
            require_reach(model, max_context, windows=replaces_attention)
            return name, check(name)
        except UserError as error:
            failure = error
    raise failure
