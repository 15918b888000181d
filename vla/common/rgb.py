"""Conversion of decoded images to RGB: orientation, transparency, and grey values of more than 8 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Num, UInt8

if TYPE_CHECKING:
    from PIL import Image

BIT_DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""Bit depths of grey values that cameras and scanners use."""


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image as an image viewer shows them.

    - The EXIF orientation is applied.
    - Transparent pixels become white; `Image.convert("RGB")` would show the hidden values, mostly black.
    - Grey values of more than 8 bits are scaled to 8; `Image.convert("RGB")` would clip them at 255. Files do not
      declare how many of their 16 bits are used, so the smallest of `BIT_DEPTHS` that fits the largest value is
      assumed. Floating-point values up to 1 are shares of white.
    - For an animation, the first frame is returned.

    Raises Pillow's exceptions for a damaged file, or for a colour space that it cannot convert.
    """
    from PIL import Image

    image.load()
    image = _upright(image)
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image)
        clear = values == image.info.get("transparency")
        return np.repeat(np.where(clear, np.uint8(255), _eight_bits(values))[..., None], 3, axis=2)
    if image.has_transparency_data:
        page = Image.new("RGBA", image.size, "white")
        page.alpha_composite(image.convert("RGBA"))
        image = page
    return np.asarray(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # unreadable metadata is treated as no orientation
        return image


def _eight_bits(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = finite.max(initial=0.0)
    integers = not np.issubdtype(values.dtype, np.floating)
    white = 1.0 if peak <= 1 and not integers else next(2.0**bits - 1 for bits in BIT_DEPTHS if peak < 2.0**bits)
    return np.rint(finite.clip(0, white) * (255 / white)).astype(np.uint8)
