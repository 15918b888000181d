"""Framings with one frame of the image's shape, in complete patches (Qwen2-VL, Pixtral)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vla.errors import InputError
from vla.models.preprocessing.view import Piece, View


@dataclass(frozen=True)
class Native:
    """Both sides are rounded to multiples of `cell` pixels, with `least` to `most` pixels in total.

    Source: Qwen2-VL, section 2.1, and `smart_resize` of its released code.

    Raises:
        InputError: in `view`, for an image whose aspect ratio exceeds 200.
    """

    kind: ClassVar[str] = "native"
    cell: int
    least: int
    most: int
    resample: str = "bicubic"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        if max(height, width) > 200 * min(height, width):
            raise InputError(f"an image of {height} x {width} pixels is too long for its width: at most 200 times")
        size = [round(side / self.cell) * self.cell for side in (height, width)]
        if size[0] * size[1] > self.most:
            scale = math.sqrt(height * width / self.most)
            size = [max(self.cell, math.floor(side / scale / self.cell) * self.cell) for side in (height, width)]
        elif size[0] * size[1] < self.least:
            scale = math.sqrt(self.least / (height * width))
            size = [math.ceil(side * scale / self.cell) * self.cell for side in (height, width)]
        frame = (size[0], size[1])
        return View((Piece(frame, (frame,)),), self.resample)


@dataclass(frozen=True)
class Patches:
    """Sides are reduced to at most `longest` pixels, then rounded up to complete patches of `cell` pixels (Pixtral)."""

    kind: ClassVar[str] = "patches"
    cell: int
    longest: int
    resample: str = "bicubic"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        ratio = max(height / self.longest, width / self.longest, 1)
        sides = max(1, math.floor(height / ratio)), max(1, math.floor(width / ratio))
        frame = ((sides[0] - 1) // self.cell + 1) * self.cell, ((sides[1] - 1) // self.cell + 1) * self.cell
        return View((Piece(frame, (frame,)),), self.resample)
