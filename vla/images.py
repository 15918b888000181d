"""Resizing and normalising camera images: the one path, for training and for deployment."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float32, UInt8
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


def normalize(
    images: UInt8[np.ndarray, "n h w 3"], mean: tuple[float, ...], std: tuple[float, ...]
) -> Float32[np.ndarray, "n 3 h w"]:
    """(x / 255 - mean) / std per channel, channels first."""
    scale = np.float32(1 / 255) / np.asarray(std, np.float32)
    offset = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    return np.ascontiguousarray((images * scale - offset).transpose(0, 3, 1, 2))
