"""Molmo's framing: the resized image, and up to 12 overlapping crops that form one grid of tokens."""

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
"""Patches at each side of a crop that overlap with its neighbour and whose tokens are taken from the neighbour."""
POOL = 2
"""A token represents 2 x 2 patches."""


@dataclass(frozen=True)
class Crops:
    """The image fitted into a black square of `side` pixels, then up to `most` crops of that size, row by row.

    `patch` is the side of a patch [pixels]. Pixels are integers, while the released code resizes floating-point images;
    the difference is at most one of 255 levels.
    """

    kind: ClassVar[str] = "crops"
    side: int
    patch: int
    most: int = MAX_CROPS
    resample: str = "bilinear"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        size = (self.side, self.side)
        overview = Piece(size, *_fitted(height, width, size))
        if not self.most:
            return View((overview,), self.resample)
        margin = MARGIN * self.patch
        window = self.side - 2 * margin
        rows, columns = tiling(height - 2 * margin, width - 2 * margin, window, self.most)
        sizes, (top, left) = _fitted(height, width, (rows * window + 2 * margin, columns * window + 2 * margin))
        starts = [(i * window, j * window) for i in range(rows) for j in range(columns)]
        crops = (Piece(size, sizes, (top - y, left - x)) for y, x in starts)
        return View((overview, *crops), self.resample, grid=(rows, columns))


def _fitted(height: int, width: int, canvas: Sides) -> tuple[tuple[Sides], Sides]:
    """Size and offset of an image that is fitted into the canvas with its aspect ratio, and centred."""
    scale = min(np.float32(canvas[0]) / np.float32(height), np.float32(canvas[1]) / np.float32(width))
    y, x = (max(1, int(np.float32(side) * scale)) for side in (height, width))
    return ((y, x),), ((canvas[0] - y) // 2, (canvas[1] - x) // 2)


def tiling(height: int, width: int, window: int, most: int = MAX_CROPS) -> tuple[int, int]:
    """Rows and columns of windows with the smallest enlargement of the image, or else the smallest reduction.

    Args:
        height, width: size of the image without the margins [pixels]; may be negative.
        window: side of a window [pixels].
        most: maximum number of windows.
    """
    options = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if i * j <= most]
    options.sort(key=lambda option: (option[0] * option[1], option[0]))
    with np.errstate(divide="ignore"):
        scales = (np.array(options, np.float32) * window / np.array([height, width], np.float32)).min(1)
    fitting = scales >= 1
    best = np.where(fitting, scales, np.inf).argmin() if fitting.any() else scales.argmax()
    return options[int(best)]


def patch_coverage(content: Int[Tensor, "n 4"], side: int, patch: int) -> Float[Tensor, "n p"]:
    """Fraction of each patch of a frame that is covered by the image.

    Args:
        content: left, top, width and height of the image [pixels].
        side, patch: sides of the frame and of a patch [pixels].
    """
    starts = torch.arange(0, side, patch, device=content.device)

    def covered(first: Int[Tensor, "n"], length: Int[Tensor, "n"]) -> Float[Tensor, "n s"]:
        end = torch.minimum((first + length)[:, None], starts + patch)
        return (end - torch.maximum(first[:, None], starts)).clamp(min=0) / patch

    left, top, width, height = content.unbind(1)
    return (covered(top, height)[:, :, None] * covered(left, width)[:, None]).flatten(1)


def token_grid(rows: int, columns: int, side: int, margin: int) -> Int[Tensor, "r c"]:
    """Token index of each cell of the crops' common grid.

    Each frame has `side` x `side` tokens, and the crops follow the resized image.
    """

    def crop_of(count: int) -> tuple[Tensor, Tensor]:
        cells, step = torch.arange(count * (side - 2 * margin) + 2 * margin), side - 2 * margin
        crop = ((cells - margin) // step).clamp(0, count - 1)
        return crop, cells - crop * step

    (i, y), (j, x) = crop_of(rows), crop_of(columns)
    crop = 1 + i[:, None] * columns + j
    return (crop * side + y[:, None]) * side + x
