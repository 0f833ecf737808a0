"""Chooses the renderer of a model by trying what the model supports when it is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from internalize.errors import UserError
from internalize.interfaces import Renderer

from .packaged import PackagedRenderer
from .renderer import TemplateRenderer
from .replay import require_own_ids
from .template import DATE, ChatTemplate
from .tool_formats import text_format

_LOG = logging.getLogger(__name__)


def renderer_of(
    tokenizer: Any,
    protocol: str = "auto",
    arguments: Mapping[str, Any] | None = None,
    date: str = DATE,
    stop_ids: Collection[int] = (),
) -> Renderer:
    """The renderer of a tokenizer. `protocol`: 'auto', or one way, which then must work. Raises UserError."""
    template = ChatTemplate.of(tokenizer, arguments, date)
    reasons = []
    for way, make in _NATIVE.items():
        if protocol in ("auto", way):
            try:
                return make(tokenizer, template=template, stop_ids=stop_ids)
            except UserError as error:
                reasons.append(str(error))
    if protocol in _NATIVE:
        raise UserError(f"model.protocol = {protocol!r}: {reasons[0]}")
    if reasons:
        _LOG.info("calls are written as text: %s", reasons[-1])
    return _followed(tokenizer, text_format(protocol), template=template, stop_ids=stop_ids)


def _followed(*arguments: Any, **named: Any) -> TemplateRenderer:
    """A `TemplateRenderer` that has replayed a conversation. Raises UserError if its template cannot be followed."""
    renderer = TemplateRenderer(*arguments, **named)
    require_own_ids(renderer)
    return renderer


_NATIVE: dict[str, Callable[..., TemplateRenderer]] = {"renderers": PackagedRenderer, "template": _followed}


def stop_ids(model: Any) -> frozenset[int]:
    """The ids that end a turn by a model's config and generation config. Raises UserError for what is no id."""
    found: set[int] = set()
    for config in (getattr(model, "config", None), getattr(model, "generation_config", None)):
        eos = getattr(config, "eos_token_id", None)
        for number in eos if isinstance(eos, list | tuple) else [eos]:
            if not isinstance(number, int | None):
                raise UserError(f"the model's eos_token_id holds {number!r}, which is no token id")
            found |= set() if number is None else {number}
    return frozenset(found)
