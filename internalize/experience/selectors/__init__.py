"""Who picks the items shown at a step: lexical.py, embedding.py, llm.py, and `build`, which reads the recipe.

Left out: how items are shown (inject.py). What must not change: a selector returns the name of the one that really
served, and ids of the pool it was given only.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from internalize.config.schema import InjectConfig
from internalize.inference.structured import CleanedChat
from internalize.interfaces import ChatModel, Selector

from .embedding import EmbeddingSelector
from .lexical import LexicalSelector
from .llm import LLMSelector
from .log import SelectionLog

__all__ = ["EmbeddingSelector", "LLMSelector", "LexicalSelector", "SelectionLog", "build"]


def build(
    config: InjectConfig,
    chat: Callable[[str], ChatModel],
    log: Path | None = None,
    weights: str = "",
    clean: Callable[[str], str] | None = None,
) -> Selector:
    """The selector of a recipe. `chat` gives the chat model of that name, and is asked only if the recipe needs one.

    `log` is the file that a language model's selections are added to, and read from when a run goes on;
    `weights` is the id of the policy's weights, which may be asked; `clean` takes secrets out of what an endpoint of
    others is shown. Raises UserError for a missing extra.
    """
    if config.pattern != "stepwise" or config.selector == "lexical":
        return LexicalSelector()
    if config.selector == "embedding":
        return EmbeddingSelector(config.embedder)
    asked = chat(config.endpoint)
    if config.endpoint == "self":
        return LLMSelector(asked, log=SelectionLog(log), weights=weights)
    return LLMSelector(CleanedChat(asked, clean) if clean else asked, log=SelectionLog(log))
