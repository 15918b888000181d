"""The images of an episode that is being recorded, encoded and written as they arrive: memory use stays constant."""

from __future__ import annotations

import os
import shutil
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vla.datasets.folder import Staging
from vla.datasets.frame_stream import FrameStream
from vla.datasets.shards import pool
from vla.datasets.store_arrays import StoreArrays
from vla.errors import InputError

LARGE = 200_000
"""Bytes of a step's images above which encoding in several threads is faster."""


class ImageStream:
    """The images of one episode: made by `EpisodeStore.stream_images`, passed to `EpisodeStore.append` at the end.

    Until then the store is unchanged: the images are in staged files within the store's folder. These are removed by
    `abort`, with this object, or, if the process is killed, when the store is next opened to append.
    """

    def __init__(self, arrays: StoreArrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are the shapes of the store's images by camera; empty if the store has no episode yet."""
        self._arrays = arrays
        self._streams: dict[str, FrameStream] = {}
        # Inside an array's folder: zarr-python warns about unknown folders beside the arrays.
        self._staging = arrays.folder.stage("time")
        self._discard = weakref.finalize(self, _discard, self._streams, self._staging, os.getpid())
        try:
            for camera, shape in shapes.items():
                self._begin(camera, shape)
        except BaseException:
            self.abort()
            raise

    def add(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None:
        """Adds the images of one step, by camera.

        Raises:
            InputError: an image has another size or dtype than the earlier ones.
            OSError: an image cannot be written.
        """
        for camera, image in images.items():
            if camera not in self._streams:
                self._begin(camera, (*image.shape[:2], 3))
            shape = self._streams[camera].frames.shape
            if image.shape != shape or image.dtype != np.uint8:
                raise InputError(f"image of camera {camera!r} is {image.dtype} {image.shape}, expected uint8 {shape}")
        streams = [self._streams[camera] for camera in images]
        large = sum(image.nbytes for image in images.values()) >= LARGE
        work = _encode, streams, images.values()
        coded: Iterable[bytes] = pool().map(*work) if large else map(*work)
        for stream, chunk in zip(streams, coded, strict=True):
            stream.add(chunk)

    @property
    def frames(self) -> dict[str, UInt8[np.ndarray, "t _h _w 3"]]:
        """Black frames without memory, by camera, of the number, size and dtype of the added images."""
        black = np.uint8(0)
        return {name: np.broadcast_to(black, (one.count, *one.frames.shape)) for name, one in self._streams.items()}

    @property
    def scratch(self) -> Path:
        """A folder for what else is held of the episode; it goes with `abort`."""
        return self._staging.path

    @property
    def arrays(self) -> dict[str, FrameStream]:
        """The streams by array name."""
        return {f"images/{camera}": stream for camera, stream in self._streams.items()}

    def abort(self) -> None:
        """Removes the staged files."""
        self._discard()

    def _begin(self, camera: str, shape: tuple[int, ...]) -> None:
        self._streams[camera] = self._arrays.stream(f"images/{camera}", shape, self._staging)


def _encode(stream: FrameStream, image: UInt8[np.ndarray, "_h _w 3"]) -> bytes:
    return stream.frames.encode(image[None])[0]


def _discard(streams: Mapping[str, FrameStream], staging: Staging, owner: int) -> None:
    if os.getpid() != owner:  # in a forked process: the files belong to the parent
        return
    for stream in streams.values():
        stream.close()
    shutil.rmtree(staging.path, ignore_errors=True)
