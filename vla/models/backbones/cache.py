"""A key-value cache that knows which of its tokens are images, and what a backbone saw of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache


@dataclass
class Vision:
    """Features of images, which stand for `tokens` tokens of the text.

    `places` is where `embed` put them among the tokens (None before). `grids` are the rows and columns of each image's
    tokens, where positions follow from them, and `steps` what they make of each token of the text (`grid_steps`). Of
    frames that may be empty, `used` says which are not.
    """

    features: Float[Tensor, "..."]
    tokens: int
    places: Bool[Tensor, "b l"] | None = None
    grids: Sequence[tuple[int, int]] | None = None
    steps: Int[Tensor, "b l 4"] | None = None
    used: Bool[Tensor, "b k t"] | None = None


class PlacedCache(DynamicCache):
    """Keys and values of m tokens a row, in full also for layers with a sliding window, so that any can be cropped.

    `places` tells which tokens stand for images: positions (M-RoPE) or cross-attention of later tokens follow from it.
    """

    places: Bool[Tensor, "b m"] | None = None
    steps: Int[Tensor, "b m 4"] | None = None
    features: Shaped[Tensor, "b ..."] | None = None
    """What later tokens of a cross-attention family look at, or which of it, if its layers do not keep it."""

    def forked(self, copies: int) -> PlacedCache:
        new = copy.copy(self)
        new.layers = [copy.copy(layer) for layer in self.layers]
        new.batch_repeat_interleave(copies)
        for name in ("places", "steps", "features"):
            if (value := getattr(self, name)) is not None:
                setattr(new, name, value.repeat_interleave(copies, 0))
        return new

    def keep(self, length: int, layers: list[Any]) -> PlacedCache:
        """Crops `layers` to the first `length` tokens."""
        for layer in layers:
            layer.crop(length)
        if self.places is not None:
            self.places = self.places[:, :length]
        if self.steps is not None:
            self.steps = self.steps[:, :length]
        return self


def image_places(
    vision: Vision | None, cache: PlacedCache | None, mask: Bool[Tensor, "b m"], length: int
) -> Bool[Tensor, "b m"]:
    """Which of the m tokens stand for images: those cached, and the `length` new ones that `embed` placed."""
    return _noted("places", torch.zeros_like(mask), vision, cache, length)


def image_steps(
    vision: Vision | None, cache: PlacedCache | None, mask: Bool[Tensor, "b m"], length: int
) -> Int[Tensor, "b m 4"]:
    """`grid_steps` of the m tokens: of those cached, and of the `length` new ones that `embed` placed."""
    text = torch.zeros(*mask.shape, 4, dtype=torch.long, device=mask.device)
    text[..., 0] = 1
    return _noted("steps", text, vision, cache, length)


def grid_steps(places: Bool[Tensor, "b l"], grids: Sequence[tuple[int, int]]) -> Int[Tensor, "b l 4"]:
    """By how much each token moves the position of the next, and its time, row and column in its image (M-RoPE,
    Qwen2-VL, section 2.1): an image is as long as its longer side, and its tokens are counted from where it begins."""
    steps = torch.zeros(*places.shape, 4, dtype=torch.long, device=places.device)
    steps[..., 0] = 1
    of_images = []
    for rows, columns in grids:
        at = torch.arange(rows * columns, device=places.device)
        moves = torch.zeros_like(at)
        moves[-1] = max(rows, columns)
        of_images.append(torch.stack([moves, torch.zeros_like(at), at // columns, at % columns], 1))
    steps[places] = torch.cat(of_images)
    return steps


def _noted(
    name: str, found: Shaped[Tensor, "b m *more"], vision: Vision | None, cache: PlacedCache | None, length: int
) -> Shaped[Tensor, "b m *more"]:
    """What is noted of the tokens in the cache and of new ones, in place of what is `found` without a note."""
    start, cached, placed = found.shape[1] - length, getattr(cache, name, None), getattr(vision, name, None)
    if start and cached is not None:
        found[:, :start] = cached
    if placed is not None and start < placed.shape[1]:
        placed = placed[:, start : found.shape[1]]
        placed = placed.repeat_interleave(len(found) // len(placed), 0)  # of a forked cache
        found[:, start : start + placed.shape[1]] = placed
    return found
