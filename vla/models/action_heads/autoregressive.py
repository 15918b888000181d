"""Constrained autoregressive decoding up to an end token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from vla.models.action_heads.action_head import DecodeContext


def generate_constrained(
    context: DecodeContext,
    action_query_token: int,
    known: Sequence[list[int]],
    allowed: Int[Tensor, "r"],
    end: int,
    limit: int,
    sizes: Int[Tensor, "r"] | None = None,
) -> list[list[int]]:
    """Greedy decoding with a logits mask: the tokens of each row, without `end`.

    Args:
        action_query_token: starts the sequence.
        known: forced first tokens of each row, equally many with `sizes`.
        allowed: ids of the tokens that may be generated, besides `end`.
        limit: maximum number of tokens; with `sizes`, the exact sum of the sizes of the tokens after the known ones.
        sizes: size of each allowed token. No token may exceed the remaining size, and `end` is allowed only when
            none remains.
    """
    device = context.conditioning.device
    candidates = torch.cat([allowed.to(device), torch.tensor([end], device=device)])
    sizes = None if sizes is None else sizes.to(device)
    common = min(map(len, known))
    generated = torch.tensor([[action_query_token, *row[:common]] for row in known], device=device)
    hidden = context.decode_tokens(generated, 0)
    done = torch.zeros(len(known), dtype=torch.bool, device=device)
    remaining = torch.full((len(known),), limit, device=device)
    longest = limit if sizes is None else common + limit + 1
    while (index := generated.shape[1] - 1) < longest:
        scores = context.decoding.backbone.logits(hidden[:, -1])[:, candidates]
        if sizes is not None:
            fits = torch.cat([sizes <= remaining[:, None], remaining[:, None] == 0], 1)
            scores = scores.masked_fill(~fits, -torch.inf)
        best = scores.argmax(-1)
        token = candidates[best]
        if sizes is not None:
            remaining = remaining - torch.nn.functional.pad(sizes, (0, 1))[best]
        forced = torch.tensor([row[index] if index < len(row) else -1 for row in known], device=device)
        token = torch.where(forced >= 0, forced, torch.where(done, end, token))
        generated = torch.cat([generated, token[:, None]], 1)
        done |= token == end
        if done.all():
            break
        hidden = context.decode_tokens(token[:, None], index + 1)
    token_rows = generated[:, 1:].tolist()
    return [row[: row.index(end)] if end in row else row for row in token_rows]
