"""Images that stay coded until they are needed: a batch decodes its own together, each straight to its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

Image = UInt8[np.ndarray, "_h _w 3"]


@runtime_checkable
class ImageSource(Protocol):
    """Coded images of one shape, by number."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def for_each(self, indices: Int[np.ndarray, "n"], use: Callable[[int, Image], None]) -> None:
        """Decodes the images at `indices` and calls `use` with the place of each among them and the image itself,
        which is not to be kept; in several threads, where there are many."""
        ...


@dataclass(frozen=True)
class StoredImage:
    """Image `index` of `source`, or its upper left part of height and width `size` [pixels]."""

    source: ImageSource
    index: int
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width [pixels] and 3."""
        return self.source.shape if self.size is None else (*self.size, 3)

    def of(self, decoded: Image) -> Image:
        """The image, of what is decoded at `index`."""
        return decoded[: self.shape[0], : self.shape[1]]

    def decoded(self) -> Image:
        """The image as an array of its own."""
        found: list[Image] = []
        self.source.for_each(np.array([self.index]), lambda _, image: found.append(self.of(image).copy()))
        return found[0]


Views = Mapping[str, Image]
"""Images by camera, of any sizes."""
StoredViews = Mapping[str, Image | StoredImage]
"""The same, of which some or all are not decoded yet."""


def decoded(images: StoredViews) -> dict[str, Image]:
    """The images as arrays."""
    return {camera: image.decoded() if isinstance(image, StoredImage) else image for camera, image in images.items()}
