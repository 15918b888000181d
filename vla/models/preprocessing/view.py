"""The frames into which an image is cut, each with a part of the resized image, and their drawing."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import UInt8

from vla.common.images import scaled
from vla.common.stored_image import Image, StoredImage

Sides = tuple[int, int]
"""Height and width [pixels]."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Piece:
    """One frame with a part of the image.

    Attributes:
        frame: height and width of the frame [pixels].
        sizes: sizes to which the image is resized, one after the other [pixels].
        offset: top and left of the resized image on the frame [pixels]; negative where it is cut off.
    """

    frame: Sides
    sizes: tuple[Sides, ...]
    offset: Sides = (0, 0)

    @cached_property
    def content(self) -> tuple[int, int, int, int]:
        """The part of the frame that shows the image: left, top, width and height [pixels]."""
        spans = [
            (max(0, start), min(side, start + length))
            for start, side, length in zip(self.offset, self.frame, self.sizes[-1], strict=True)
        ]
        (top, bottom), (left, right) = spans
        return left, top, right - left, bottom - top


@dataclass(frozen=True)
class View:
    """The frames of an image; `grid` is the number of rows and columns of frames.

    With `squared` the image is put in the middle of a square before it is resized. What of a frame it does not cover
    has the colour `fill` (RGB). `resample` is a filter of `vla.common.images.scaled`.
    """

    pieces: tuple[Piece, ...]
    resample: str
    fill: Colour = (0, 0, 0)
    grid: tuple[int, int] = (1, 1)
    squared: bool = False


def draw(image: Image, view: View, frames: Sequence[UInt8[np.ndarray, "_h _w 3"]]) -> None:
    """Draws each piece into the upper left corner of its frame, which may be larger than the piece."""
    source = squared(image, view.fill) if view.squared else image
    made: dict[tuple[Sides, ...], Image] = {(): source}
    for piece, frame in zip(view.pieces, frames, strict=True):
        for i, size in enumerate(piece.sizes):
            if piece.sizes[: i + 1] not in made:
                made[piece.sizes[: i + 1]] = scaled(made[piece.sizes[:i]], *size, view.resample)
        _draw_piece(made[piece.sizes], piece, view.fill, frame[: piece.frame[0], : piece.frame[1]])


def _draw_piece(image: Image, piece: Piece, fill: Colour, frame: UInt8[np.ndarray, "_h _w 3"]) -> None:
    left, top, width, height = piece.content
    if (width, height) != (frame.shape[1], frame.shape[0]):
        for bar in (frame[:top], frame[top + height :], frame[:, :left], frame[:, left + width :]):
            if bar.size:
                _paint(bar, fill)
    y, x = top - piece.offset[0], left - piece.offset[1]
    frame[top : top + height, left : left + width] = image[y : y + height, x : x + width]


def _paint(pixels: UInt8[np.ndarray, "_h _w 3"], colour: Colour) -> None:
    for channel, value in enumerate(colour):  # numpy takes eight times as long for all three at once
        pixels[..., channel] = value


def squared(image: Image, fill: Colour) -> Image:
    """The image centred in a square of the colour."""
    height, width = image.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    _paint(square, fill)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = image
    return square


def draw_all(
    images: Sequence[Image | StoredImage],
    views: Sequence[View],
    frames: Sequence[Sequence[UInt8[np.ndarray, "_h _w 3"]]],
) -> None:
    """Draws each image's view; stored images are decoded in groups by their source.

    Raises:
        InputError: where a stored image is damaged.
    """
    by_source: dict[int, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        if isinstance(image, StoredImage):
            by_source[id(image.source)].append(i)
        else:
            draw(image, views[i], frames[i])
    for indices in by_source.values():
        group = [image for i in indices if isinstance(image := images[i], StoredImage)]

        def draw_one(
            number: int, image: Image, indices: Sequence[int] = indices, group: Sequence[StoredImage] = group
        ) -> None:
            draw(group[number].of(image), views[indices[number]], frames[indices[number]])

        group[0].source.for_each(np.array([image.index for image in group]), draw_one)
