"""Judges that grade free-form answers: by text, by mathematical equivalence, by a language model, or in a chain.

A judge that fails leaves the answer unscored with a reason; a failure never becomes a score of 0.
"""

from __future__ import annotations

from collections.abc import Callable

from internalize.config.schema import JudgeConfig
from internalize.interfaces import ChatModel, Judge

from .chain import ChainJudge
from .match import ExactJudge, normalize
from .maths import Conventions, MathJudge
from .model import ModelJudge

__all__ = ["ChainJudge", "ExactJudge", "MathJudge", "ModelJudge", "build", "normalize"]


def build(config: JudgeConfig, chat: Callable[[str], ChatModel], clean: Callable[[str], str] | None = None) -> Judge:
    """The judge of a recipe. `chat` returns the chat model of that name; it is only called if the recipe needs one.

    `clean` removes secrets from texts; an answer that it changes is not sent to an endpoint.
    Raises UserError if a judge needs an extra that is not installed.
    """
    factories: dict[str, Callable[[], Judge]] = {
        "exact": ExactJudge,
        "maths": lambda: MathJudge(
            seconds=config.seconds,
            conventions=Conventions(config.units, config.percent, config.order, config.decimals),
        ),
        "model": lambda: ModelJudge(chat(config.endpoint), clean=None if config.endpoint == "self" else clean),
    }
    if config.kind == "chain":
        return ChainJudge([factories[name]() for name in config.chain])
    return factories[config.kind]()
