"""Positions and attention masks of padded rows, and of rows with independent segments."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput

TOGETHER = -1
"""Segment of tokens that attend to each other and to all earlier tokens (the query tokens of an action chunk)."""


def order_of(mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """Index of each token in its row, without padding."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def segment_positions(order: Int[Tensor, "b l"], segments: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Positions with segments: each continues after the shared tokens; `TOGETHER` tokens continue the previous ones."""
    segments = segments.clamp(min=0)
    if not segments.any():
        return order
    shape = (len(order), int(segments.max()) + 1)
    first = torch.full(shape, order.shape[1], device=order.device).scatter_reduce(1, segments, order, "amin")
    shared = first[:, 1:].amin(1, keepdim=True)
    return torch.where(segments > 0, order - first.gather(1, segments) + shared, order)


def segment_mask(
    mask: Bool[Tensor, "b l"], segments: Int[Tensor, "b l"], bidirectional: bool = False
) -> Bool[Tensor, "b l l"]:
    """Whether each query (rows) may attend to each key (columns): earlier keys, either shared or of the same segment.

    `TOGETHER` tokens attend to each other and to all earlier tokens.

    Args:
        mask: valid tokens.
        bidirectional: the shared tokens attend to each other in both directions (a prefix-LM).
    """
    query, key = segments[:, :, None], segments[:, None, :]
    together = query == TOGETHER
    allowed = ((key == 0) | (key == query) | together).tril() | (together & (key == TOGETHER))
    if bidirectional:
        allowed |= (key == 0) & (query == 0)
    return allowed & mask[:, None, :]


def additive(allowed: Bool[Tensor, "b q k"], dtype: torch.dtype) -> Float[Tensor, "b 1 q k"]:
    """The additive attention mask: 0 where allowed, the smallest finite number elsewhere."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    # Finite also after a cast to bfloat16 by autocast: the softmax of a row of infinities is undefined.
    return zeros.masked_fill(~allowed, max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min))[:, None]


def block_mask(mask: Bool[Tensor, "b l"], segments: Int[Tensor, "b l"], bidirectional: bool = False) -> BlockMask:
    """`segment_mask` for flex attention, which skips fully masked blocks (Dong et al. 2024, arXiv 2412.05496).

    The backward pass of flex attention needs a GPU.
    """
    rows, length = mask.shape
    return create_block_mask(
        lambda b, _, q, k: (
            mask[b, k]
            & (
                ((segments[b, k] == 0) & ((k <= q) | (bidirectional & (segments[b, q] == 0))))
                | ((segments[b, k] == segments[b, q]) & ((k <= q) | (segments[b, q] == TOGETHER)))
                | ((segments[b, q] == TOGETHER) & (k <= q))
            )
        ),
        rows,
        None,
        length,
        length,
        device=mask.device,
    )


def takes_blocks(decoder: Any) -> bool:
    """Whether a decoder of transformers uses flex attention."""
    return bool(decoder.config._attn_implementation == "flex_attention")


@cache
def takes_positions(forward: Callable[..., Any]) -> bool:
    """Whether the `forward` of a decoder of transformers takes position ids; with ALiBi (MPT, BLOOM) it does not."""
    return "position_ids" in inspect.signature(forward).parameters


def mask_and_positions(
    inputs: DecoderInput, order: Int[Tensor, "b m"], bidirectional: bool = False, blocks: bool = False
) -> tuple[Tensor | BlockMask, Int[Tensor, "b m"]]:
    """Mask and positions with which a decoder of transformers processes the last l of m tokens.

    The mask is the padding mask (b m) for causal rows, and a full mask (b 1 l m) for rows with segments or a
    `bidirectional` prompt.

    Args:
        order: positions without segments.
        blocks: return the full mask as a `block_mask`.

    Raises:
        InputError: for segments after cached tokens, except new tokens that are all `TOGETHER`.
    """
    mask, segments, length, dtype = inputs.attention_mask, inputs.segments, inputs.length, inputs.embeds.dtype
    segmented = segments is not None and bool(segments.any())
    if inputs.continues and segments is not None and bool((segments == TOGETHER).all()):
        if blocks:
            return create_block_mask(lambda b, _, q, k: mask[b, k], len(mask), None, length, mask.shape[1]), order
        return additive(mask[:, None].expand(-1, length, -1), dtype), order
    if segmented and inputs.continues:
        raise InputError("segments are only possible in the first tokens of a cache: later tokens share one segment")
    if inputs.continues or not (segmented or bidirectional):
        return mask.long(), order
    shared = torch.zeros_like(order) if segments is None else segments
    full: Tensor | BlockMask
    if blocks:
        full = block_mask(mask, shared, bidirectional)
    else:
        full = additive(segment_mask(mask, shared, bidirectional), dtype)
    return full, segment_positions(order, shared) if segmented else order


def run_decoder(
    decoder: Any,
    inputs: DecoderInput,
    order: Int[Tensor, "b m"] | None = None,
    offsets: Int[Tensor, "3 b m"] | int = 0,
    bidirectional: bool = False,
    **extra: Any,
) -> Float[Tensor, "b l d"]:
    """The last hidden states of a causal decoder of transformers.

    Args:
        order: positions without segments, by default `order_of` the mask.
        offsets: added to the positions.
        bidirectional: as in `segment_mask`.
        extra: further arguments of the decoder.

    Raises:
        InputError: for segments after cached tokens, and with a decoder without position ids.
    """
    order = order_of(inputs.attention_mask) if order is None else order
    attention_mask, positions = mask_and_positions(inputs, order, bidirectional, takes_blocks(decoder))
    if takes_positions(type(decoder).forward):
        extra["position_ids"] = (positions + offsets)[..., -inputs.length :]
    elif inputs.segments is not None and inputs.segments.any():
        raise InputError(f"{decoder.config.model_type} takes no position ids: it does not support segments")
    out = decoder(
        inputs_embeds=inputs.embeds,
        attention_mask=attention_mask,
        past_key_values=inputs.cache,
        use_cache=inputs.cache is not None,
        **extra,
    )
    return out.last_hidden_state
