"""One large image as several tiles of the backbone's size: InternVL's dynamic tiling."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.errors import InputError
from vla.images import Size, sides


def tile_grid(height: int, width: int, size: Size, most: int = 12, least: int = 1) -> tuple[int, int]:
    """Rows and columns of tiles, `least` to `most` in all, whose aspect ratio is nearest to that of the image.

    Of grids equally near, the largest whose area is less than twice that of the image.
    Raises InputError when the image is empty or there is no such number of tiles.
    """
    tall, wide = sides(size)
    if min(height, width, tall, wide) < 1:
        raise InputError(f"an image of {height} x {width} pixels cannot be cut into tiles of {tall} x {wide}")
    if not 1 <= least <= most:
        raise InputError(f"tiles are at least 1, and at most no fewer than the least, not {least} to {most}")
    grids = [(r, c) for r in range(1, most + 1) for c in range(1, most // r + 1) if least <= r * c]
    aspect = width / height * (tall / wide)
    near = min(abs(aspect - c / r) for r, c in grids)
    equal = sorted((g for g in grids if abs(aspect - g[1] / g[0]) == near), key=lambda g: g[0] * g[1])
    filled = [g for g in equal if 2 * height * width > tall * wide * g[0] * g[1]]
    return (filled or equal[:1])[-1]


def tiles(
    image: UInt8[np.ndarray, "_h _w 3"], size: Size, most: int = 12, least: int = 1
) -> UInt8[np.ndarray, "n h w 3"]:
    """The image stretched over its `tile_grid` and cut row by row; of more than one tile, the last is the whole image.

    Each is an image of its own to the backbone. Bicubic (Pillow), as InternVL. Raises InputError as `tile_grid`.
    """
    (height, width), (tall, wide) = image.shape[:2], sides(size)
    rows, columns = tile_grid(height, width, size, most, least)
    whole = Image.fromarray(image)
    stretched = np.asarray(whole.resize((columns * wide, rows * tall), Image.Resampling.BICUBIC))
    cut = stretched.reshape(rows, tall, columns, wide, 3).swapaxes(1, 2).reshape(-1, tall, wide, 3)
    if len(cut) == 1:
        return cut
    return np.concatenate([cut, np.asarray(whole.resize((wide, tall), Image.Resampling.BICUBIC))[None]])
