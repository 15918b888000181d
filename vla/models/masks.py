"""Positions and attention masks of padded rows, and of rows with independent segments."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from vla.errors import InputError

TOGETHER = -1
"""The segment of tokens that look at each other, and at all before them (the slots of a chunk of actions)."""


def order_of(mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b m"]:
    """Which token of its row each is, padding left out."""
    return (mask.long().cumsum(1) - 1).clamp(min=0)


def segment_positions(order: Int[Tensor, "b l"], segments: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
    """Every segment goes on where the shared tokens end; tokens that are `TOGETHER`, where those before them do."""
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
    """Whether the query (rows) may look at the key (columns): before it, and shared or of its own segment.

    `bidirectional`: the shared tokens look at each other whatever their order (a prefix-LM). Tokens that are `TOGETHER`
    look at each other and at all before them.
    """
    query, key = segments[:, :, None], segments[:, None, :]
    together = query == TOGETHER
    allowed = ((key == 0) | (key == query) | together).tril() | (together & (key == TOGETHER))
    if bidirectional:
        allowed |= (key == 0) & (query == 0)
    return allowed & mask[:, None, :]


def additive(allowed: Bool[Tensor, "b q k"], dtype: torch.dtype) -> Float[Tensor, "b 1 q k"]:
    """What is added to the attention scores: 0 where allowed, the least finite number elsewhere."""
    zeros = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    # Finite also where autocast makes bfloat16 of it: a row of infinities has no softmax.
    return zeros.masked_fill(~allowed, max(torch.finfo(dtype).min, torch.finfo(torch.bfloat16).min))[:, None]


def block_mask(mask: Bool[Tensor, "b l"], segments: Int[Tensor, "b l"], bidirectional: bool = False) -> BlockMask:
    """`segment_mask` as flex attention takes it: blocks in which nothing is allowed are not computed (Dong et al. 2024,
    arXiv 2412.05496). Its backward pass needs a GPU; a CPU runs it forward only."""
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
    """Whether a decoder of transformers attends with flex attention."""
    return bool(decoder.config._attn_implementation == "flex_attention")


def mask_and_positions(
    mask: Bool[Tensor, "b m"],
    order: Int[Tensor, "b m"],
    segments: Int[Tensor, "b l"] | None,
    length: int,
    dtype: torch.dtype,
    bidirectional: bool = False,
    blocks: bool = False,
) -> tuple[Tensor | BlockMask, Int[Tensor, "b m"]]:
    """What a decoder of transformers is given for `length` new of m tokens, `order` their positions without segments.

    The mask is the padding's (b m) for a causal row, or the whole of it (b 1 l m; `blocks`: a `block_mask`) for one
    with segments or a `bidirectional` prompt. Raises InputError when segments come after earlier tokens, but for new
    tokens that are all `TOGETHER`.
    """
    earlier = mask.shape[1] > length
    told = segments is not None and bool(segments.any())
    if earlier and segments is not None and bool((segments == TOGETHER).all()):
        if blocks:
            return create_block_mask(lambda b, _, q, k: mask[b, k], len(mask), None, length, mask.shape[1]), order
        return additive(mask[:, None].expand(-1, length, -1), dtype), order
    if told and earlier:
        raise InputError("segments are told with the first tokens of a cache: later ones are all of one")
    if earlier or not (told or bidirectional):
        return mask.long(), order
    shared = torch.zeros_like(order) if segments is None else segments
    whole: Tensor | BlockMask
    if blocks:
        whole = block_mask(mask, shared, bidirectional)
    else:
        whole = additive(segment_mask(mask, shared, bidirectional), dtype)
    return whole, segment_positions(order, shared) if told else order


def run_decoder(
    decoder: Any,
    embeds: Float[Tensor, "b l d"],
    mask: Bool[Tensor, "b m"],
    cache: Any | None,
    segments: Int[Tensor, "b l"] | None,
    **told: Any,
) -> Float[Tensor, "b l d"]:
    """The last hidden states of a causal decoder of transformers for the last l of m tokens, the others in `cache`.

    `told` is what a family's own decoder takes besides. Raises InputError when segments come after earlier tokens.
    """
    length = embeds.shape[1]
    blocks = takes_blocks(decoder)
    seen, positions = mask_and_positions(mask, order_of(mask), segments, length, embeds.dtype, blocks=blocks)
    out = decoder(
        inputs_embeds=embeds,
        attention_mask=seen,
        position_ids=positions[:, -length:],
        past_key_values=cache,
        use_cache=cache is not None,
        **told,
    )
    return out.last_hidden_state
