"""In how many rows and columns of tiles a large image is cut: all grids, and InternVL's choice of one."""

from __future__ import annotations

from vla.common.images import Size, sides
from vla.errors import InputError


def grids_of(most: int) -> list[tuple[int, int]]:
    """Rows and columns of every grid of up to `most` tiles, by rows."""
    return [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]


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
    grids = [(r, c) for r, c in grids_of(most) if least <= r * c]
    aspect = width / height * (tall / wide)
    near = min(abs(aspect - c / r) for r, c in grids)
    equal = sorted((g for g in grids if abs(aspect - g[1] / g[0]) == near), key=lambda g: g[0] * g[1])
    filled = [g for g in equal if 2 * height * width > tall * wide * g[0] * g[1]]
    return (filled or equal[:1])[-1]
