"""Decoded pictures as RGB pixels: upright, on white, and with their grey values scaled."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Num, UInt8

if TYPE_CHECKING:
    from PIL import Image

BIT_DEPTHS = (8, 10, 12, 14, 16, 24, 32)
"""The depths that cameras and scanners count grey values in."""


def to_rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an opened picture, as a person sees it in a viewer.

    - The EXIF orientation is applied.
    - What is transparent shows white, as on a page; `Image.convert("RGB")` shows what lies under it, mostly black.
    - Grey values of more than 8 bits are scaled to 8; `Image.convert("RGB")` clips them at 255. Files do not say how
      many of their 16 bits are used: it is taken to be the least of `BIT_DEPTHS` that holds the largest value, so that
      a 12-bit scan is not almost black. Real numbers up to 1 are shares of white.
    - Of an animation it is the first frame.

    Raises whatever Pillow raises over a damaged file, or one in a color space that it cannot convert.
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
    except Exception:  # metadata that cannot be read states no orientation
        return image


def _eight_bits(values: Num[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
    sound = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    peak = sound.max(initial=0.0)
    whole = not np.issubdtype(values.dtype, np.floating)
    white = 1.0 if peak <= 1 and not whole else next(2.0**bits - 1 for bits in BIT_DEPTHS if peak < 2.0**bits)
    return np.rint(sound.clip(0, white) * (255 / white)).astype(np.uint8)
