"""Framings with one frame of fixed size: padded, stretched or cropped (LLaVA, PaliGemma, CLIP)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vla.common.images import fitted, fitted_down
from vla.models.preprocessing.view import Colour, Piece, Sides, View


@dataclass(frozen=True)
class _Filled:
    size: Sides
    resample: str
    fill: Colour = (0, 0, 0)


@dataclass(frozen=True)
class Pad(_Filled):
    """The image is fitted into the frame with its aspect ratio, with bars of the colour `fill`."""

    kind: ClassVar[str] = "pad"
    resample: str = "bilinear"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        left, top, wide, tall = fitted(height, width, self.size)
        return View((Piece(self.size, ((tall, wide),), (top, left)),), self.resample, self.fill)


@dataclass(frozen=True)
class FloorPad(_Filled):
    """As `Pad`, with sides rounded down, and an odd pixel of the bars at the right or bottom (openpi)."""

    kind: ClassVar[str] = "floor-pad"
    resample: str = "pillow-bilinear"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        tall, wide = fitted_down(height, width, self.size)
        offset = (self.size[0] - tall) // 2, (self.size[1] - wide) // 2
        return View((Piece(self.size, ((tall, wide),), offset),), self.resample, self.fill)


@dataclass(frozen=True)
class Square(_Filled):
    """The image is centred in a square of the colour `fill`, which is then resized (as LLaVA 1.5 was trained)."""

    kind: ClassVar[str] = "square"
    resample: str = "bicubic"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        return View((Piece(self.size, (self.size,)),), self.resample, self.fill, squared=True)


@dataclass(frozen=True)
class Stretch:
    """The image is resized to the frame, ignoring its aspect ratio; or to the size `before` and then centre-cropped."""

    kind: ClassVar[str] = "stretch"
    size: Sides
    resample: str = "bicubic"
    before: Sides | None = None

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        size = self.before or self.size
        return View((Piece(self.size, (size,), _middle(self.size, size)),), self.resample)


@dataclass(frozen=True)
class Crop:
    """The image's shorter side is resized to `shortest` pixels, and the image is centre-cropped (CLIP).

    Offsets of half a pixel are rounded up and left, or with `nearest` to the even number (torchvision).
    """

    kind: ClassVar[str] = "crop"
    size: Sides
    shortest: int
    resample: str = "bicubic"
    nearest: bool = False

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        longest = int(self.shortest * max(height, width) / min(height, width))
        size = (self.shortest, longest) if height <= width else (longest, self.shortest)
        return View((Piece(self.size, (size,), _middle(self.size, size, self.nearest)),), self.resample)


def _middle(frame: Sides, size: Sides, nearest: bool = False) -> Sides:
    """Offset of an image of this size that is centred on the frame."""
    cut = round if nearest else int
    # An image smaller than the frame is padded; an odd pixel goes to the right or bottom.
    top, left = ((f - s) // 2 if f > s else -cut((s - f) / 2) for f, s in zip(frame, size, strict=True))
    return top, left
