"""Chooses the renderer of a model by what the model at hand supports, tried out when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from internalize.errors import UserError
from internalize.interfaces import Renderer

from .packaged import PackagedRenderer
from .renderer import TemplateRenderer
from .template import DATE, ChatTemplate
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
    if protocol in TOOL_FORMATS:
        return TemplateRenderer(tokenizer, TOOL_FORMATS[protocol], template=template, stop_ids=stop_ids)
    reasons = []
    for way, make in _NATIVE.items():
        if protocol in ("auto", way):
            try:
                return make(tokenizer, template=template, stop_ids=stop_ids)
            except UserError as error:
                reasons.append(str(error))
    if protocol != "auto":
        raise UserError(f"model.protocol = {protocol!r}: {reasons[0]}")
    _LOG.info("calls are written as text: %s", reasons[-1])
    return TemplateRenderer(tokenizer, TOOL_FORMATS["bracket"], template=template, stop_ids=stop_ids)


_NATIVE: dict[str, Callable[..., Renderer]] = {"renderers": PackagedRenderer, "template": TemplateRenderer}


def stop_ids(model: Any) -> frozenset[int]:
    """What ends a turn according to a model's config and generation config."""
    found: set[int] = set()
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        eos = getattr(config, "eos_token_id", None)
        found |= {int(number) for number in (eos if isinstance(eos, list | tuple) else [eos]) if number is not None}
    return frozenset(found)
