"""A KV cache that records which tokens belong to images, and the encoded images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from transformers import DynamicCache

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput


@dataclass
class Vision:
    """Encoded images of a batch.

    Attributes:
        tokens: number of image tokens in the text.
        image_tokens: mask of the image tokens, set by `embed`.
        grids: rows and columns of each image's tokens, in families whose positions depend on them.
        steps: `grid_steps` of the tokens.
        used: mask of non-empty tiles, in families with empty ones.
    """

    features: Float[Tensor, "..."]
    tokens: int
    image_tokens: Bool[Tensor, "b l"] | None = None
    grids: Sequence[tuple[int, int]] | None = None
    steps: Int[Tensor, "b l 4"] | None = None
    used: Bool[Tensor, "b k t"] | None = None


class ImageTokenCache(DynamicCache):
    """Keys and values of m tokens per row, complete also for layers with a sliding window, so that it can be cropped.

    `image_tokens` is the mask of image tokens and `steps` their `grid_steps`, on which cross-attention and positions
    (M-RoPE) of later tokens depend.
    """

    image_tokens: Bool[Tensor, "b m"] | None = None
    steps: Int[Tensor, "b m 4"] | None = None
    features: Shaped[Tensor, "b ..."] | None = None
    """Image features, or the mask of used tiles, for the cross-attention of later tokens."""

    def forked(self, copies: int) -> ImageTokenCache:
        """A copy with each row repeated `copies` times."""
        new = copy.copy(self)
        new.layers = [copy.copy(layer) for layer in self.layers]
        new.batch_repeat_interleave(copies)
        for name in ("image_tokens", "steps", "features"):
            if (value := getattr(self, name)) is not None:
                setattr(new, name, value.repeat_interleave(copies, 0))
        return new

    def crop_layers(self, length: int, layers: list[Any]) -> ImageTokenCache:
        """Truncates `layers` to the first `length` tokens, in place."""
        for layer in layers:
            layer.crop(length)
        if self.image_tokens is not None:
            self.image_tokens = self.image_tokens[:, :length]
        if self.steps is not None:
            self.steps = self.steps[:, :length]
        return self


def record_image_tokens(image_tokens: Bool[Tensor, "b l"], vision: Vision | None) -> None:
    """Records the mask of image tokens in `vision`. Raises InputError unless their number is that of the images."""
    expected = 0 if vision is None else vision.tokens
    if (found := int(image_tokens.sum())) != expected:
        raise InputError(
            f"the text has {found} image tokens, but the images have {expected}: write as many as the images have"
        )
    if vision is not None:
        vision.image_tokens = image_tokens


def cached_images(
    inputs: DecoderInput, features: Shaped[Tensor, "_p ..."] | None
) -> tuple[Bool[Tensor, "b m"], Shaped[Tensor, "b ..."] | None]:
    """Mask of the image tokens among the cached and the new tokens, and their features for cross-attention.

    The cache records both.

    Args:
        features: those of a prompt; later tokens have the cached ones.
    """
    image_tokens, cache = _recorded("image_tokens", torch.zeros_like(inputs.attention_mask), inputs), inputs.cache
    if inputs.continues:
        features = cache.features
    if cache is not None:
        cache.image_tokens, cache.features = image_tokens, features
    return image_tokens, features


def image_steps(inputs: DecoderInput) -> Int[Tensor, "b m 4"]:
    """`grid_steps` of the cached tokens and the new ones."""
    mask = inputs.attention_mask
    text = torch.zeros(*mask.shape, 4, dtype=torch.long, device=mask.device)
    text[..., 0] = 1
    return _recorded("steps", text, inputs)


def grid_steps(image_tokens: Bool[Tensor, "b l"], grids: Sequence[tuple[int, int]]) -> Int[Tensor, "b l 4"]:
    """Position increment of each token, and its time, row and column in its image (M-RoPE: Qwen2-VL, section 2.1).

    An image advances the position by the length of its longer side. Its tokens are at the image's first position, plus
    their time, row and column.
    """
    steps = torch.zeros(*image_tokens.shape, 4, dtype=torch.long, device=image_tokens.device)
    steps[..., 0] = 1
    of_images = []
    for rows, columns in grids:
        index = torch.arange(rows * columns, device=image_tokens.device)
        increments = torch.zeros_like(index)
        increments[-1] = max(rows, columns)
        of_images.append(torch.stack([increments, torch.zeros_like(index), index // columns, index % columns], 1))
    steps[image_tokens] = torch.cat(of_images)
    return steps


def _recorded(name: str, values: Shaped[Tensor, "b m *more"], inputs: DecoderInput) -> Shaped[Tensor, "b m *more"]:
    """`values` with the entries that are recorded in the cache, and in `vision` for new tokens."""
    start = values.shape[1] - inputs.length
    cached, new = (getattr(source, name, None) for source in (inputs.cache, inputs.vision))
    if start and cached is not None:
        values[:, :start] = cached
    if new is not None and start < new.shape[1]:
        new = new[:, start : values.shape[1]]
        new = new.repeat_interleave(len(values) // len(new), 0)  # the cache may be forked
        values[:, start : start + new.shape[1]] = new
    return values
