"""Framings with several frames of one size: InternVL's tiles, splitting of Idefics3 and SmolVLM, Llama 3.2's canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from vla.models.preprocessing.tiling import grids_of, tile_grid
from vla.models.preprocessing.view import Piece, Sides, View

LONGEST = 4096
"""Longest side of a resized image in Idefics3 [pixels]."""


def _cut(grid: Sides, size: Sides, sizes: tuple[Sides, ...]) -> tuple[Piece, ...]:
    """The frames of `size`, in row-major order, of an image that was resized to `sizes`."""
    rows, columns = grid
    return tuple(Piece(size, sizes, (-r * size[0], -c * size[1])) for r in range(rows) for c in range(columns))


def _longest(height: int, width: int, longest: int) -> Sides:
    """The size with a longer side of `longest` pixels and an even shorter side, limited to `LONGEST`."""
    aspect, longer = width / height, longest
    shorter = int(longer / aspect) if width >= height else int(longer * aspect)
    shorter = max(1, shorter + shorter % 2)
    sides = (shorter, longer) if width >= height else (longer, shorter)
    if max(sides) > LONGEST:
        aspect = sides[1] / sides[0]
        sides = (int(LONGEST / aspect), LONGEST) if sides[1] >= sides[0] else (LONGEST, int(LONGEST * aspect))
    return max(1, sides[0]), max(1, sides[1])


@dataclass(frozen=True)
class Tiles:
    """The image is stretched over the grid of up to `most` tiles with the nearest aspect ratio.

    If there are several tiles, the full image follows as one more (InternVL 1.5, section 3.3). With `shared` the images
    of a row have `most` tiles in total, each an equal share of them (InternVL 2.5, section 2.2).
    """

    kind: ClassVar[str] = "tiles"
    size: Sides
    most: int = 12
    least: int = 1
    resample: str = "bicubic"
    shared: bool = False

    def among(self, images: int) -> Tiles:
        """As one of a row's so many images."""
        return replace(self, most=max(self.least, self.most // images)) if self.shared else self

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        grid = tile_grid(height, width, self.size, self.most, self.least)
        stretched = (grid[0] * self.size[0], grid[1] * self.size[1])
        pieces = _cut(grid, self.size, (stretched,))
        overview = (Piece(self.size, (self.size,)),) if len(pieces) > 1 else ()
        return View(pieces + overview, self.resample, grid=grid)


@dataclass(frozen=True)
class _Resized:
    side: int
    longest: int
    resample: str = "bicubic"


@dataclass(frozen=True)
class Split(_Resized):
    """The longer side is resized to `longest` pixels, then both sides are stretched to multiples of the tile `side`.

    The resized image follows the tiles (Idefics3, section 3.2.2).
    """

    kind: ClassVar[str] = "split"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        first = _longest(height, width, self.longest)
        second = self._round_to_tiles(*first)
        grid, size = (second[0] // self.side, second[1] // self.side), (self.side, self.side)
        if grid == (1, 1):
            return View((Piece(size, (first, second)),), self.resample)
        pieces = _cut(grid, size, (first, second))
        return View((*pieces, Piece(size, (first, second, size))), self.resample, grid=grid)

    def _round_to_tiles(self, height: int, width: int) -> Sides:
        def up(side: int) -> int:
            return math.ceil(side / self.side) * self.side

        aspect = width / height
        if width >= height:
            return up(int(up(width) / aspect)), up(width)
        return up(height), up(int(up(height) * aspect))


@dataclass(frozen=True)
class Whole(_Resized):
    """The image as one tile, without splitting: resized as in `Split`, then stretched to a tile."""

    kind: ClassVar[str] = "whole"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        first, size = _longest(height, width, self.longest), (self.side, self.side)
        return View((Piece(size, (first, size)),), self.resample)


@dataclass(frozen=True)
class Canvas:
    """The image is in the upper left corner of a black canvas of up to `most` tiles (Llama 3.2).

    The canvas is the one with the smallest enlargement, or else the smallest reduction; of several, the smallest.
    """

    kind: ClassVar[str] = "canvas"
    size: Sides
    most: int = 4
    resample: str = "bilinear"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        side = self.size[0]
        rows, columns = self._grid(height, width)
        sides = [min(max(pixels, side), tiles * side) for pixels, tiles in ((height, rows), (width, columns))]
        down, across = sides[0] / height, sides[1] / width
        if across < down:
            fit = (min(math.floor(height * across) or 1, sides[0]), sides[1])
        else:
            fit = (sides[0], min(math.floor(width * down) or 1, sides[1]))
        return View(_cut((rows, columns), self.size, (fit,)), self.resample, grid=(rows, columns))

    def _grid(self, height: int, width: int) -> Sides:
        side = self.size[0]
        grids = grids_of(self.most)
        scales = [min(r * side / height, c * side / width) for r, c in grids]
        enlarging = [scale for scale in scales if scale >= 1]
        best = min(enlarging) if enlarging else max(scales)
        return min((g for g, s in zip(grids, scales, strict=True) if s == best), key=lambda g: g[0] * g[1])
