"""One frame of a fixed size: the image fitted in with bars, stretched, or cut; after LLaVA, PaliGemma and CLIP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vla.common.images import fitted
from vla.models.preprocessing.view import Colour, Piece, Sides, View


@dataclass(frozen=True)
class Pad:
    """Fitted into the frame, its aspect ratio kept, bars of the colour `fill` around it."""

    kind: ClassVar[str] = "pad"
    size: Sides
    resample: str = "bilinear"
    fill: Colour = (0, 0, 0)

    def view(self, height: int, width: int) -> View:
        left, top, wide, tall = fitted(height, width, self.size)
        return View((Piece(self.size, ((tall, wide),), (top, left)),), self.resample, self.fill)


@dataclass(frozen=True)
class Square:
    """In the middle of a square of the colour `fill`, which is then resized: LLaVA 1.5's training."""

    kind: ClassVar[str] = "square"
    size: Sides
    resample: str = "bicubic"
    fill: Colour = (0, 0, 0)

    def view(self, height: int, width: int) -> View:
        return View((Piece(self.size, (self.size,)),), self.resample, self.fill, squared=True)


@dataclass(frozen=True)
class Stretch:
    """Resized to the frame, whatever its aspect ratio; or to the size `before`, and the middle cut out."""

    kind: ClassVar[str] = "stretch"
    size: Sides
    resample: str = "bicubic"
    before: Sides | None = None

    def view(self, height: int, width: int) -> View:
        size = self.before or self.size
        return View((Piece(self.size, (size,), _middle(self.size, size)),), self.resample)


@dataclass(frozen=True)
class Crop:
    """Resized so that its shorter side is `shortest` pixels, and the middle of it cut out (CLIP); half a pixel goes up
    and left, or with `nearest` to the even number (torchvision)."""

    kind: ClassVar[str] = "crop"
    size: Sides
    shortest: int
    resample: str = "bicubic"
    nearest: bool = False

    def view(self, height: int, width: int) -> View:
        longest = int(self.shortest * max(height, width) / min(height, width))
        size = (self.shortest, longest) if height <= width else (longest, self.shortest)
        return View((Piece(self.size, (size,), _middle(self.size, size, self.nearest)),), self.resample)


def _middle(frame: Sides, size: Sides, nearest: bool = False) -> Sides:
    """Where an image of this size lies, of which the frame shows the middle."""
    cut = round if nearest else int
    # What is smaller than the frame is padded first, half a pixel more behind it.
    top, left = ((f - s) // 2 if f > s else -cut((s - f) / 2) for f, s in zip(frame, size, strict=True))
    return top, left
