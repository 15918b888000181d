"""How Molmo cuts an image: the whole of it small, and up to 12 crops that overlap, read as one grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.preprocessing.view import Piece, Sides, View

MAX_CROPS = 12
MARGIN = 4
"""Patches at each side of a crop that its neighbour shows too: the tokens there are the neighbour's."""
POOL = 2
"""A token stands for 2 x 2 patches."""


@dataclass(frozen=True)
class Crops:
    """The whole image in a square of `side` pixels, black around it, then crops of that size row by row: up to `most`
    of them, of patches of `patch` pixels; none for `most` 0.

    A view's pixels are whole levels, where the released code resizes fractions: they differ by one of 255 at most.
    """

    kind: ClassVar[str] = "crops"
    side: int
    patch: int
    most: int = MAX_CROPS
    resample: str = "bilinear"

    def view(self, height: int, width: int) -> View:
        size = (self.side, self.side)
        whole = Piece(size, *_fitted(height, width, size))
        if not self.most:
            return View((whole,), self.resample)
        margin = MARGIN * self.patch
        window = self.side - 2 * margin
        rows, columns = tiling(height - 2 * margin, width - 2 * margin, window, self.most)
        sizes, (top, left) = _fitted(height, width, (rows * window + 2 * margin, columns * window + 2 * margin))
        starts = [(i * window, j * window) for i in range(rows) for j in range(columns)]
        crops = (Piece(size, sizes, (top - y, left - x)) for y, x in starts)
        return View((whole, *crops), self.resample, grid=(rows, columns))


def _fitted(height: int, width: int, canvas: Sides) -> tuple[tuple[Sides], Sides]:
    """The size of an image that fits the canvas, its aspect ratio kept, and where it lies in the middle of it."""
    scale = min(np.float32(canvas[0]) / np.float32(height), np.float32(canvas[1]) / np.float32(width))
    y, x = (max(1, int(np.float32(side) * scale)) for side in (height, width))
    return ((y, x),), ((canvas[0] - y) // 2, (canvas[1] - x) // 2)


def tiling(height: int, width: int, window: int, most: int = MAX_CROPS) -> tuple[int, int]:
    """Rows and columns of windows: the least enlargement of the image that covers it, or else the least reduction.

    `height` and `width` are without the margins, and may be negative, in pixels.
    """
    options = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most]
    options.sort(key=lambda option: (option[0] * option[1], option[0]))
    with np.errstate(divide="ignore"):
        scales = (np.array(options, np.float32) * window / np.array([height, width], np.float32)).min(1)
    fitting = scales >= 1
    best = np.where(fitting, scales, np.inf).argmin() if fitting.any() else scales.argmax()
    return options[int(best)]


def inside(content: Int[Tensor, "n 4"], side: int, patch: int) -> Float[Tensor, "n p"]:
    """How much of each patch of a frame of `side` pixels shows the image, from 0 to 1; `content` is where it is (left,
    top, width, height [pixels])."""
    starts = torch.arange(0, side, patch, device=content.device)

    def covered(first: Int[Tensor, "n"], length: Int[Tensor, "n"]) -> Float[Tensor, "n s"]:
        end = torch.minimum((first + length)[:, None], starts + patch)
        return (end - torch.maximum(first[:, None], starts)).clamp(min=0) / patch

    left, top, width, height = content.unbind(1)
    return (covered(top, height)[:, :, None] * covered(left, width)[:, None]).flatten(1)


def token_grid(rows: int, columns: int, side: int, margin: int) -> Int[Tensor, "r c"]:
    """Which token shows each cell of the crops' common grid; an image has `side` x `side`, the whole one is first."""

    def crop_of(count: int) -> tuple[Tensor, Tensor]:
        cells, step = torch.arange(count * (side - 2 * margin) + 2 * margin), side - 2 * margin
        crop = ((cells - margin) // step).clamp(0, count - 1)
        return crop, cells - crop * step

    (i, y), (j, x) = crop_of(rows), crop_of(columns)
    crop = 1 + i[:, None] * columns + j
    return (crop * side + y[:, None]) * side + x
