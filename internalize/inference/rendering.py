"""Chooses the renderer of a model by what the model at hand supports, tried out when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from internalize.interfaces import Renderer

from .renderer import TemplateRenderer
from .template import DATE, ChatTemplate, Unrenderable
from .tool_formats import TOOL_FORMATS

_LOG = logging.getLogger(__name__)


def renderer_of(
    tokenizer: Any,
    protocol: str = "auto",
    arguments: Mapping[str, Any] | None = None,
    date: str = DATE,
    stop_ids: Collection[int] = (),
) -> Renderer:
    """The renderer of a tokenizer. `protocol`: 'auto', or a way alone, which then has to work. Raises UserError."""
    template = ChatTemplate.of(tokenizer, arguments, date)
    form = TOOL_FORMATS.get(protocol)
    if form is None:
        try:
            return TemplateRenderer(tokenizer, template=template, stop_ids=stop_ids)
        except Unrenderable as error:
            if protocol != "auto":
                raise
            _LOG.info("%s: calls are written as text", error)
    return TemplateRenderer(tokenizer, form or TOOL_FORMATS["bracket"], template=template, stop_ids=stop_ids)


def stop_ids(model: Any) -> frozenset[int]:
    """What ends a turn according to a model's config and generation config."""
    found: set[int] = set()
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        eos = getattr(config, "eos_token_id", None)
        found |= {int(number) for number in (eos if isinstance(eos, list | tuple) else [eos]) if number is not None}
    return frozenset(found)
