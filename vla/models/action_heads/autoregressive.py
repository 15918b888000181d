"""Saying tokens one after the other, up to an end."""

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
    most: int,
    sizes: Int[Tensor, "r"] | None = None,
) -> list[list[int]]:
    """The likeliest tokens among `allowed` and `end`, after those that are `known`: at most `most`, `end` left out.

    Where their `sizes` are given, `most` is what they add up to: none is said that goes beyond it, and no end before.
    """
    device = context.conditioning.device
    choice = torch.cat([allowed.to(device), torch.tensor([end], device=device)])
    sizes = None if sizes is None else sizes.to(device)
    common = min(map(len, known))
    said = torch.tensor([[action_query_token, *row[:common]] for row in known], device=device)
    hidden = context.decode_tokens(said, 0)
    done = torch.zeros(len(known), dtype=torch.bool, device=device)
    left = torch.full((len(known),), most, device=device)
    while (place := said.shape[1] - 1) < most + (sizes is not None):
        scores = context.decoding.backbone.logits(hidden[:, -1])[:, choice]
        if sizes is not None:
            fits = torch.cat([sizes <= left[:, None], left[:, None] == 0], 1)
            scores = scores.masked_fill(~fits, -torch.inf)
        at = scores.argmax(-1)
        token = choice[at]
        if sizes is not None:
            left = left - torch.nn.functional.pad(sizes, (0, 1))[at]
        forced = torch.tensor([row[place] if place < len(row) else -1 for row in known], device=device)
        token = torch.where(forced >= 0, forced, torch.where(done, end, token))
        said = torch.cat([said, token[:, None]], 1)
        done |= token == end
        if done.all():
            break
        hidden = context.decode_tokens(token[:, None], place + 1)
    rows = said[:, 1:].tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]
