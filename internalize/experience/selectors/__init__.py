"""Selectors pick the experience shown at a step; `build` makes the one that a recipe names.

A selector returns only ids of the given pool, and the name of the selector that really chose them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from internalize.config.schema import InjectConfig
from internalize.experience.cues import GENERIC
from internalize.inference.cached import CachedChat
from internalize.inference.structured import CleanedChat
from internalize.interfaces import ChatModel, CueExtractor, Selector

from .embedding import EmbeddingSelector
from .lexical import LexicalSelector
from .llm import LLMSelector

__all__ = ["EmbeddingSelector", "LLMSelector", "LexicalSelector", "build"]


def build(
    config: InjectConfig,
    chat: Callable[[str], ChatModel],
    replies: Path | None = None,
    checkpoint: str = "",
    clean: Callable[[str], str] | None = None,
    cues: tuple[CueExtractor, ...] = GENERIC,
) -> Selector:
    """The selector of a recipe. `chat` returns the chat model of a name, and is called only if the recipe needs one.

    The replies of a language model are kept in the file `replies`, so that a resumed run does not ask twice.
    `checkpoint` is the id of the policy's weights, in case the policy selects; `clean` removes secrets from what
    endpoints receive; `cues` are what the pool's rules can name. Raises UserError for a missing extra.
    """
    if config.pattern != "stepwise" or config.selector == "lexical":
        return LexicalSelector(cues)
    if config.selector == "embedding":
        return EmbeddingSelector(config.embedder, cues=cues)
    asked, fallback = chat(config.endpoint), LexicalSelector(cues)
    if config.endpoint == "self":
        return LLMSelector(CachedChat(asked, replies, checkpoint=checkpoint), fallback=fallback)
    return LLMSelector(CachedChat(CleanedChat(asked, clean) if clean else asked, replies), fallback=fallback)
