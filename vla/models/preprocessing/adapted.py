"""Variants of a family's preprocessing: with another number of frames, and with one frame for a robot's cameras."""

from __future__ import annotations

from dataclasses import replace
from math import isqrt
from typing import Any

from vla.errors import InputError
from vla.models.choices import check_image_mode
from vla.models.preprocessing.frames import Crop, Pad, Stretch
from vla.models.preprocessing.molmo_crops import Crops
from vla.models.preprocessing.native import Native, Patches
from vla.models.preprocessing.settings import Framing, Preprocessing
from vla.models.preprocessing.tiles import Canvas, Split, Tiles, Whole
from vla.models.preprocessing.view import Sides

CAMERA_TOKENS = 256
"""Default maximum number of tokens of a camera image where the backbone takes any size: 16 x 16 cells for a square
image, as PaliGemma's at 224 pixels."""


def with_tiles(preprocessing: Preprocessing, tiles: int | None) -> Preprocessing:
    """The preprocessing with at most `tiles` tiles per image and the resized image; None: as the family was trained.

    Raises:
        InputError: for a family whose images are always one frame.
    """
    framing = preprocessing.framing
    if tiles is None:
        return preprocessing
    if tiles < 1:
        raise InputError(f"an image is seen in at least one piece: tiles is {tiles}")
    if isinstance(framing, Tiles):
        return replace(
            preprocessing, framing=replace(framing, most=tiles, least=min(framing.least, tiles), shared=False)
        )
    if isinstance(framing, Canvas | Crops):
        return replace(preprocessing, framing=replace(framing, most=tiles))
    if isinstance(framing, Split | Whole):
        side, grid = framing.side, isqrt(tiles)
        made: Framing = Whole(side, framing.longest) if grid == 1 else Split(side, side * grid)
        return replace(preprocessing, framing=made)
    if tiles == 1:
        return preprocessing
    if isinstance(framing, Native | Patches):
        raise InputError(f"this backbone takes an image as one frame of the same shape: leave out tiles={tiles}")
    return replace(preprocessing, framing=Tiles(size_of(framing), tiles))


def for_camera(preprocessing: Preprocessing, mode: str | None = None, tokens: int | None = None) -> Preprocessing:
    """The preprocessing of camera images, one frame each.

    Args:
        mode: native (the image's shape), stretch, pad (bars) or crop (the middle); None: as the family was trained.
        tokens: maximum number of image tokens.

    Raises:
        InputError: for a mode or number of tokens that the family does not support.
    """
    check_image_mode(mode)
    framing, cell = preprocessing.framing, preprocessing.markup.cell
    if isinstance(framing, Native | Patches):
        budget = CAMERA_TOKENS if tokens is None else tokens
        if budget < 1:
            raise InputError(f"a camera's image is at least one token: image_tokens is {budget}")
        least = min(framing.least if isinstance(framing, Native) else cell**2, budget * cell**2)
        if mode in (None, "native"):
            return replace(preprocessing, framing=Native(cell, least, budget * cell**2, framing.resample))
        side = isqrt(budget) * cell
        return replace(preprocessing, framing=_framed(mode, (side, side), framing))
    if mode == "native":
        raise InputError("this backbone takes frames of one size: images is stretch, pad or crop")
    size = size_of(framing)
    made = _framed(mode, size, framing) if mode else _single(framing)
    adapted = replace(preprocessing, framing=made)
    count = adapted.markup.count(made.view(*size))
    if tokens is not None and tokens != count:
        raise InputError(f"a camera image always has {count} tokens in this backbone, not image_tokens={tokens}")
    return adapted


def size_of(framing: Framing) -> Sides:
    """Height and width of a frame [pixels], for framings of fixed size."""
    if isinstance(framing, Split | Whole | Crops):
        return framing.side, framing.side
    sized: Any = framing
    size: Sides = sized.size
    return size


def _framed(mode: str | None, size: Sides, framing: Any) -> Framing:
    resample = _fast(framing.resample)
    if mode == "stretch":
        return Stretch(size, resample)
    if mode == "crop":
        return Crop(size, min(size), resample)
    return Pad(size, resample, getattr(framing, "fill", (0, 0, 0)))


def _fast(resample: str) -> str:
    """PyTorch's filter where it has one like Pillow's: in a tenth of the time, within 2 of 255 levels."""
    return resample.removeprefix("pillow-")


def _single(framing: Framing) -> Framing:
    """The family's framing, reduced to one frame."""
    if isinstance(framing, Tiles | Split | Whole):
        return Stretch(size_of(framing), _fast(framing.resample))
    if isinstance(framing, Canvas):
        return replace(framing, most=1)
    if isinstance(framing, Crops):
        return replace(framing, most=0)
    return framing
