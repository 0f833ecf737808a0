"""Grades free-form answers: match.py (text), maths.py (equivalence), model.py (a language model), chain.py.

Left out: which answers are graded (the environment's `claim`). What must not change: whatever fails is unscored with
a reason, never a 0.
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
    """The judge of a recipe. `chat` gives the chat model of that name, and is asked only if the recipe needs one.

    `clean` takes secrets out of texts: an endpoint of others is not asked about answers that it changes.
    Raises UserError if a judge needs an extra that is not installed.
    """
    made: dict[str, Callable[[], Judge]] = {
        "exact": ExactJudge,
        "maths": lambda: MathJudge(
            seconds=config.seconds,
            conventions=Conventions(config.units, config.percent, config.order, config.decimals),
        ),
        "model": lambda: ModelJudge(chat(config.endpoint), clean=None if config.endpoint == "self" else clean),
    }
    if config.kind == "chain":
        return ChainJudge([made[name]() for name in config.chain])
    return made[config.kind]()
