"""How Molmo cuts a document: the whole image small, and up to 12 crops that overlap, read as one grid of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

MAX_CROPS = 12
MARGIN = 4
"""Patches at each side of a crop that its neighbour shows too: the tokens there are the neighbour's."""
POOL = 2
"""A token stands for 2 x 2 patches."""


@dataclass(frozen=True)
class Crops:
    """The whole image first, then the crops row by row: n of them, of p patches each.

    `inside` is how much of a patch is image and not padding, from 0 to 1; -1 is "in part", see `cut`. `grid` tells of
    each token of the crops read as one image (r rows, c columns) which token it is, of all those of the n images.
    """

    pixels: Float[Tensor, "n 3 s s"]
    inside: Float[Tensor, "n p"]
    grid: Int[Tensor, "r c"]


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


def cut(image: UInt8[np.ndarray, "h w 3"], size: int, patch: int, most: int = MAX_CROPS) -> Crops:
    """The crops of `size` pixels, of patches of `patch`; pixels from 0 to 1, padding 0.

    The released model has always had each crop's padding told with the image before it, and "in part" with the last
    crop: here too.
    """
    margin = MARGIN * patch
    window = size - 2 * margin
    rows, columns = tiling(image.shape[0] - 2 * margin, image.shape[1] - 2 * margin, window, most)
    whole, _ = fitted(image, size, size)
    canvas, inside = fitted(image, rows * window + 2 * margin, columns * window + 2 * margin)
    starts = [(i * window, j * window) for i in range(rows) for j in range(columns)]
    pixels = torch.stack([whole, *(canvas[:, y : y + size, x : x + size] for y, x in starts)])
    masks = torch.stack([inside[:, y : y + size, x : x + size] for y, x in starts])
    masks = pad(avg_pool2d(masks, patch).flatten(1), (0, 0, 0, 1), value=-1.0)
    return Crops(pixels, masks, token_grid(rows, columns, size // patch // POOL, MARGIN // POOL))


def fitted(
    image: UInt8[np.ndarray, "h w 3"], height: int, width: int
) -> tuple[Float[Tensor, "3 y x"], Float[Tensor, "1 y x"]]:
    """The image resized to fit, its aspect ratio kept, in the middle of zeros; and a mask of where it is."""
    scale = min(np.float32(height) / np.float32(image.shape[0]), np.float32(width) / np.float32(image.shape[1]))
    y, x = (int(np.float32(side) * scale) for side in image.shape[:2])
    pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)[None] / 255
    small = interpolate(pixels, (y, x), mode="bilinear", antialias=True).clamp(0, 1)[0]
    top, left = (height - y) // 2, (width - x) // 2
    border = (left, width - x - left, top, height - y - top)
    return pad(small, border), pad(torch.ones(1, y, x), border)


def token_grid(rows: int, columns: int, side: int, margin: int) -> Int[Tensor, "r c"]:
    """Which token shows each cell of the crops' common grid; an image has `side` x `side`, the whole one is first."""

    def crop_of(count: int) -> tuple[Tensor, Tensor]:
        cells, step = torch.arange(count * (side - 2 * margin) + 2 * margin), side - 2 * margin
        crop = ((cells - margin) // step).clamp(0, count - 1)
        return crop, cells - crop * step

    (i, y), (j, x) = crop_of(rows), crop_of(columns)
    crop = 1 + i[:, None] * columns + j
    return (crop * side + y[:, None]) * side + x
