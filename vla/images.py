"""Resizing camera images: the one path, for training and for deployment."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image


def resize(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Fits the image into a `size` x `size` square, black bars filling what its aspect ratio leaves.

    Bilinear with antialiasing (Pillow); an image that already has the size is returned as it is.
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / max(height, width)
    new = (max(1, round(width * scale)), max(1, round(height * scale)))
    scaled = Image.fromarray(image).resize(new, Image.Resampling.BILINEAR)
    square = Image.new("RGB", (size, size))
    square.paste(scaled, ((size - new[0]) // 2, (size - new[1]) // 2))
    return np.asarray(square)
