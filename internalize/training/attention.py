"""Attention over a trunk and its branches: every token of a branch sees the trunk up to its fork, then itself.

One function is registered with transformers and stays switched on: a pass without a `layout` is plain sdpa. With a
layout, a CPU attends segment by segment, so that work and memory grow with the visible positions and not with the
square of the packed length; on CUDA the layout is a block mask of flex attention, which skips hidden blocks. Sliding
windows and other attention variants are refused. The layout is an argument and not state of the model, because gradient
checkpointing runs attention again during the backward pass and needs the same layout.

Dimensions: `_T` packed tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from internalize.errors import UserError
from internalize.records.packed import Segment

ATTENTION = "internalize_branches"  # name of the attention function in transformers' registry
_UNSUPPORTED = ("softcap", "s_aux")  # attention variants that would silently give wrong results


class Layout:
    """Which positions attend to which in one pass, in the form for its device."""

    def __init__(self, segments: Sequence[Segment], like: Tensor) -> None:
        self.segments = segments
        self.longest = max(segment.reach + segment.end - segment.start for segment in segments)
        on_gpu = like.device.type == "cuda"
        self.blocks = block_mask(segments, like.device) if on_gpu else None
        self.masks = [] if on_gpu else [_mask(segment, like) for segment in segments]


def switch_on(model: Any) -> None:
    """Let a causal language model accept layouts. Raises UserError if its attention cannot be replaced."""
    if model.config._attn_implementation == ATTENTION:  # noqa: SLF001 - it has no public name
        return
    model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:  # noqa: SLF001
        raise UserError(f"{type(model).__name__} has no exchangeable attention; choose another model")


def branch_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered function: [1, H, T, D] and keys, values [1, H_kv, T, D] -> [1, T, H, D].

    Raises UserError for unsupported attention variants.
    """
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **rest)  # type: ignore[no-any-return]
    asked = [name for name in _UNSUPPORTED if rest.get(name) is not None]
    if (window := rest.get("sliding_window")) is not None and window < layout.longest:
        asked = ["sliding_window"]
    if asked:
        raise UserError(f"distillation does not do attention with {asked[0]}; choose another model")
    if layout.blocks is not None:
        return flex_attention_forward(module, query, key, value, layout.blocks, **rest)  # type: ignore[no-any-return]
    return _by_segment(query, key, value, layout, rest), None


def _by_segment(query: Tensor, key: Tensor, value: Tensor, layout: Layout, rest: dict[str, Any]) -> Tensor:
    parts = []
    for segment, mask in zip(layout.segments, layout.masks, strict=True):
        parts.append(
            scaled_dot_product_attention(
                query[:, :, segment.start : segment.end],
                _seen(key, segment),
                _seen(value, segment),
                attn_mask=mask,
                is_causal=mask is None,
                dropout_p=rest.get("dropout", 0.0),
                scale=rest.get("scaling"),
                enable_gqa=True,
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous()  # some models call view() on it


def _seen(states: Tensor, segment: Segment) -> Tensor:
    own = states[:, :, segment.start : segment.end]
    if not segment.reach:
        return own
    return torch.cat([states[:, :, segment.trunk : segment.trunk + segment.reach], own], dim=2)


def _mask(segment: Segment, like: Tensor) -> Tensor | None:
    """Additive mask [own, reach + own]; None for the plain causal mask."""
    if not segment.reach:
        return None
    own = segment.end - segment.start
    hidden = torch.ones(own, segment.reach + own, dtype=torch.bool, device=like.device).triu(segment.reach + 1)
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


def visible(segments: Sequence[Segment], device: torch.device) -> Any:
    """The layout as a predicate of (batch, head, query position, key position), element by element."""
    lengths = torch.tensor([segment.end - segment.start for segment in segments])

    def a_token(values: Sequence[int]) -> Tensor:
        return torch.tensor(values).repeat_interleave(lengths).to(device)

    own_T = a_token(range(len(segments)))
    first_T = a_token([segment.trunk for segment in segments])
    end_T = a_token([segment.trunk + segment.reach for segment in segments])

    def predicate(batch: Tensor, attention_head: Tensor, q: Tensor, k: Tensor) -> Tensor:  # noqa: ARG001 - flex's form
        return ((own_T[q] == own_T[k]) & (k <= q)) | ((k >= first_T[q]) & (k < end_T[q]))

    return predicate


def block_mask(segments: Sequence[Segment], device: torch.device) -> Any:
    """The layout for flex attention: the blocks of [T, T] that are computed."""
    from torch.nn.attention.flex_attention import create_block_mask  # noqa: PLC0415 - imports the compiler

    length = segments[-1].end
    return create_block_mask(visible(segments, device), B=None, H=None, Q_LEN=length, KV_LEN=length, device=device)


AttentionInterface.register(ATTENTION, branch_attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
