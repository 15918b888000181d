"""What a vision encoder is shown of an image: frames, each with a part of the resized image, and how they are drawn."""

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
    """A frame of height and width `frame`, on which the image lies with its upper left corner at `offset` (top, left;
    negative where a part is cut off), after it was resized to each of `sizes` in turn. All in pixels."""

    frame: Sides
    sizes: tuple[Sides, ...]
    offset: Sides = (0, 0)

    @cached_property
    def content(self) -> tuple[int, int, int, int]:
        """The part of the frame that shows the image: left, top, width and height [pixels]."""
        spans = [
            (max(0, at), min(side, at + shown))
            for at, side, shown in zip(self.offset, self.frame, self.sizes[-1], strict=True)
        ]
        (top, bottom), (left, right) = spans
        return left, top, right - left, bottom - top


@dataclass(frozen=True)
class View:
    """The frames of an image; `grid` is in how many rows and columns of frames it was cut.

    With `squared` the image is put in the middle of a square before it is resized. What of a frame it does not cover
    has the colour `fill` (RGB). `resample` is bilinear, bicubic or lanczos, with antialiasing.
    """

    pieces: tuple[Piece, ...]
    resample: str
    fill: Colour = (0, 0, 0)
    grid: tuple[int, int] = (1, 1)
    squared: bool = False


def draw(image: Image, view: View, frames: Sequence[UInt8[np.ndarray, "_h _w 3"]]) -> None:
    """Draws each piece on the upper left of its frame, which may be larger than the piece."""
    source = squared(image, view.fill) if view.squared else image
    made: dict[tuple[Sides, ...], Image] = {(): source}
    for piece, frame in zip(view.pieces, frames, strict=True):
        for i, size in enumerate(piece.sizes):
            if piece.sizes[: i + 1] not in made:
                made[piece.sizes[: i + 1]] = scaled(made[piece.sizes[:i]], *size, view.resample)
        _place(made[piece.sizes], piece, view.fill, frame[: piece.frame[0], : piece.frame[1]])


def _place(image: Image, piece: Piece, fill: Colour, frame: UInt8[np.ndarray, "_h _w 3"]) -> None:
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
    """The image in the middle of a square of the colour."""
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
    """Draws each image's view; those that are stored are decoded on the way, several at a time.

    Raises InputError where a stored one is damaged.
    """
    stored: dict[int, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        if isinstance(image, StoredImage):
            stored[id(image.source)].append(place)
        else:
            draw(image, views[place], frames[place])
    for places in stored.values():
        together = [image for place in places if isinstance(image := images[place], StoredImage)]

        def put(
            number: int, image: Image, places: Sequence[int] = places, stored: Sequence[StoredImage] = together
        ) -> None:
            draw(stored[number].of(image), views[places[number]], frames[places[number]])

        together[0].source.for_each(np.array([image.index for image in together]), put)
