"""A frame of the image's own shape, in whole patches: Qwen2-VL and Pixtral."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vla.errors import InputError
from vla.models.preprocessing.view import Piece, View


@dataclass(frozen=True)
class Native:
    """Both sides the nearest multiple of `cell` pixels, with `least` to `most` pixels in all (Qwen2-VL, section 2.1;
    `smart_resize` of its released code).

    Raises InputError where an image is more than 200 times as long as it is wide.
    """

    kind: ClassVar[str] = "native"
    cell: int
    least: int
    most: int
    resample: str = "bicubic"

    def view(self, height: int, width: int) -> View:
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
    """Never enlarged, at most `longest` pixels a side, and then up to whole patches of `cell` pixels (Pixtral)."""

    kind: ClassVar[str] = "patches"
    cell: int
    longest: int
    resample: str = "bicubic"

    def view(self, height: int, width: int) -> View:
        ratio = max(height / self.longest, width / self.longest, 1)
        sides = max(1, math.floor(height / ratio)), max(1, math.floor(width / ratio))
        frame = ((sides[0] - 1) // self.cell + 1) * self.cell, ((sides[1] - 1) // self.cell + 1) * self.cell
        return View((Piece(frame, (frame,)),), self.resample)
