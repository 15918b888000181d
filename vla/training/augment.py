"""Image augmentation that keeps colour words and coordinates true: light, contrast and saturation."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def jitter(seeds: Int[Tensor, "b"], images: int, strength: float) -> Float[Tensor, "b k 3"]:
    """What `augment` is to do to `images` of each row, within `strength`; drawn from the row's seed alone."""
    drawn = np.stack([np.random.default_rng(seed).random((images, 3), np.float32) for seed in seeds.tolist()])
    return torch.from_numpy(2 * drawn - 1) * strength


def augment(pixels: Float[Tensor, "b k 3 h w"], jitter: Float[Tensor, "b k 3"]) -> Float[Tensor, "b k 3 h w"]:
    """Changes each image's brightness, contrast and saturation by its `jitter`: a fraction, 0 for none.

    Works on normalised pixels. Geometry is left alone: points are part of the targets.
    """
    brightness, contrast, saturation = (jitter[:, :, i, None, None, None] for i in range(3))
    grey = pixels.mean(2, keepdim=True)
    out = grey + (pixels - grey) * (1 + saturation)
    level = out.mean((2, 3, 4), keepdim=True)
    return level + (out - level) * (1 + contrast) + brightness
