"""Decoding with a cache, and what a head needs of it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.models.masks import TOGETHER

KeysValues = list[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]]
"""What each layer of a backbone cached."""


class Decoding:
    """Rows under way, with a cache of what they hold."""

    def __init__(self, backbone: Any, embeds: Float[Tensor, "b l d"], mask: Bool[Tensor, "b l"], vision: Any) -> None:
        self.backbone, self.mask, self._vision = backbone, mask, vision
        self.hidden, self.cache = backbone.forward(embeds, mask, backbone.new_cache(), vision)

    def next_logits(self) -> Any:
        """(b v) of the next token; to be indexed by row, as an engine computes only what is chosen."""
        return self.backbone.logits(self.hidden[:, -1])

    def extend(self, embeds: Float[Tensor, "b l d"], together: bool = False) -> Float[Tensor, "b l d"]:
        """The hidden states of further tokens, which look at each other where they are `together`."""
        self.mask = F.pad(self.mask, (0, embeds.shape[1]), value=True)
        alike = torch.full(embeds.shape[:2], TOGETHER, device=embeds.device) if together else None
        self.hidden, self.cache = self.backbone.forward(embeds, self.mask, self.cache, self._vision, alike)
        return self.hidden

    def next_position(self) -> Int[Tensor, "b"]:
        """Of the token after those so far."""
        position: Tensor = self.backbone.next_position(self.mask, self.cache)
        return position

    def rollback(self, count: int) -> None:
        """Forgets the last `count` tokens."""
        if count:
            self.mask = self.mask[:, :-count]
            self.cache = self.backbone.crop(self.cache, self.mask.shape[1])


def keys_values(cache: Any) -> KeysValues:
    return [] if cache is None else [(layer.keys, layer.values) for layer in cache.layers]


def median_bins(logits: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """The median of each distribution over bins, as a fraction of a bin.

    It has the least expected absolute error, is finer than a bin, and does not jump between bins that are almost
    equally likely as the likeliest one does; between two modes it takes the heavier.
    """
    total = logits.softmax(-1).cumsum(-1)
    at = (total < 0.5).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    upper = total.gather(-1, at)
    lower = torch.where(at > 0, total.gather(-1, (at - 1).clamp(min=0)), 0.0)
    return (at - 0.5 + (0.5 - lower) / (upper - lower).clamp(min=1e-9)).squeeze(-1)
