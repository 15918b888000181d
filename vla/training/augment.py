"""Image augmentation that keeps colour words and coordinates true: light, contrast, saturation, noise."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def augment(
    pixels: Float[Tensor, "b k 3 h w"], generator: torch.Generator, strength: float
) -> Float[Tensor, "b k 3 h w"]:
    """Jitters each image by up to `strength` (a fraction; 0 is off) in brightness, contrast and saturation.

    Works on normalised pixels. Geometry is left alone: points are part of the targets.
    """
    if strength == 0:
        return pixels
    b, k = pixels.shape[:2]

    def draw() -> Tensor:
        uniform = torch.rand(b, k, 1, 1, 1, generator=generator)
        return (2 * uniform - 1) * strength

    grey = pixels.mean(2, keepdim=True)
    level = pixels.mean((2, 3, 4), keepdim=True)
    contrast, saturation = 1 + draw(), 1 + draw()
    out = grey + (pixels - grey) * saturation
    out = level + (out - level) * contrast + draw()
    noise = torch.randn(pixels.shape, generator=generator)
    return out + noise * (strength * 0.1)
