"""Grids of tiles into which a large image is cut: all possible grids, and InternVL's choice."""

from __future__ import annotations

from vla.common.images import Size, sides
from vla.errors import InputError


def grids_of(most: int) -> list[tuple[int, int]]:
    """Rows and columns of every grid of up to `most` tiles, ordered by rows."""
    return [(rows, columns) for rows in range(1, most + 1) for columns in range(1, most // rows + 1)]


def tile_grid(height: int, width: int, size: Size, most: int = 12, least: int = 1) -> tuple[int, int]:
    """Rows and columns of `least` to `most` tiles whose aspect ratio is closest to that of the image.

    Among equally close grids it is the largest whose area is less than twice that of the image.

    Raises:
        InputError: for an empty image, or invalid numbers of tiles.
    """
    tile_height, tile_width = sides(size)
    if min(height, width, tile_height, tile_width) < 1:
        raise InputError(
            f"an image of {height} x {width} pixels cannot be cut into tiles of {tile_height} x {tile_width}"
        )
    if not 1 <= least <= most:
        raise InputError(f"tiles are at least 1, and at most no fewer than the least, not {least} to {most}")
    grids = [(r, c) for r, c in grids_of(most) if least <= r * c]
    aspect = width / height * (tile_height / tile_width)
    near = min(abs(aspect - c / r) for r, c in grids)
    equal = sorted((g for g in grids if abs(aspect - g[1] / g[0]) == near), key=lambda g: g[0] * g[1])
    filled = [g for g in equal if 2 * height * width > tile_height * tile_width * g[0] * g[1]]
    return (filled or equal[:1])[-1]
