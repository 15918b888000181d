"""A key-value cache that knows which of its tokens are images, and what a backbone saw of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache


@dataclass
class Vision:
    """Features of images, which stand for `tokens` tokens of the text.

    `places` is where `embed` put them among the tokens (None before).
    """

    features: Float[Tensor, "..."]
    tokens: int
    places: Bool[Tensor, "b l"] | None = None


class PlacedCache(DynamicCache):
    """Keys and values of m tokens a row, in full also for layers with a sliding window, so that any can be cropped.

    `places` tells which tokens stand for images: positions (M-RoPE) or cross-attention of later tokens follow from it.
    """

    places: Bool[Tensor, "b m"] | None = None
    features: Float[Tensor, "b ..."] | None = None
    """What later tokens of a cross-attention family look at, if its layers do not keep it."""

    def forked(self, copies: int) -> PlacedCache:
        new = copy.copy(self)
        new.layers = [copy.copy(layer) for layer in self.layers]
        new.batch_repeat_interleave(copies)
        for name in ("places", "features"):
            if (value := getattr(self, name)) is not None:
                setattr(new, name, value.repeat_interleave(copies, 0))
        return new

    def keep(self, length: int, layers: list[Any]) -> PlacedCache:
        """Crops `layers` to the first `length` tokens."""
        for layer in layers:
            layer.crop(length)
        if self.places is not None:
            self.places = self.places[:, :length]
        return self


def image_places(
    vision: Vision | None, cache: PlacedCache | None, mask: Bool[Tensor, "b m"], length: int
) -> Bool[Tensor, "b m"]:
    """Which of the m tokens stand for images: those cached, and the `length` new ones that `embed` placed."""
    places = torch.zeros_like(mask)
    start = mask.shape[1] - length
    if start and cache is not None and cache.places is not None:
        places[:, :start] = cache.places
    if vision is not None and vision.places is not None and start < vision.places.shape[1]:
        placed = vision.places[:, start : mask.shape[1]]
        placed = placed.repeat_interleave(len(mask) // len(placed), 0)  # of a forked cache
        places[:, start : start + placed.shape[1]] = placed
    return places
