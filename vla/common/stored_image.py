"""References to encoded images, which are decoded together when a batch needs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, UInt8

Image = UInt8[np.ndarray, "_h _w 3"]


@runtime_checkable
class ImageSource(Protocol):
    """Encoded images of one shape, by index."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width [pixels] and 3."""
        ...

    def for_each(self, indices: Int[np.ndarray, "n"], use: Callable[[int, Image], None]) -> None:
        """Decodes images, in several threads if there are many.

        Args:
            indices: Indices of the images.
            use: Called with the position in `indices` and the image, whose memory is reused after the call.
        """
        ...


@dataclass(frozen=True)
class StoredImage:
    """Image `index` of `source`, or its upper left region of height and width `size` [pixels]."""

    source: ImageSource
    index: int
    size: tuple[int, int] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Height, width [pixels] and 3."""
        return self.source.shape if self.size is None else (*self.size, 3)

    def of(self, decoded: Image) -> Image:
        """The region of this image in the decoded image `index`."""
        return decoded[: self.shape[0], : self.shape[1]]

    def decoded(self) -> Image:
        """The image as a new array."""
        images: list[Image] = []
        self.source.for_each(np.array([self.index]), lambda _, image: images.append(self.of(image).copy()))
        return images[0]


Views = Mapping[str, Image]
"""Images by camera, of any sizes."""
StoredViews = Mapping[str, Image | StoredImage]
"""Images by camera, some or all of them encoded."""


def decoded(images: StoredViews) -> dict[str, Image]:
    """The images as arrays."""
    return {camera: image.decoded() if isinstance(image, StoredImage) else image for camera, image in images.items()}
