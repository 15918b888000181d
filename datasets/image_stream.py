"""The images of an episode that is under way: coded and written as they come, so that memory does not grow with it."""

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
"""Bytes of a step's images that are worth handing over to other threads."""


class ImageStream:
    """Made by `EpisodeStore.stream_images`, and given to `EpisodeStore.append` with the rest of the episode.

    Until then the store holds nothing of it: the images lie in files of their own within the store's folder, which go
    with `abort`, with this object, or, where the process is killed, when the store is next opened to append.
    """

    def __init__(self, arrays: StoreArrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """`shapes` are those of the store's images by camera, if it has any yet."""
        self._arrays = arrays
        self._streams: dict[str, FrameStream] = {}
        # Within an array: beside the arrays, zarr-python warns of what it does not know.
        self._staging = arrays.folder.stage("time")
        self._discard = weakref.finalize(self, _discard, self._streams, self._staging, os.getpid())
        try:
            for camera, shape in shapes.items():
                self._begin(camera, shape)
        except BaseException:
            self.abort()
            raise

    def add(self, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> None:
        """A step's image of each camera. Raises InputError where one has another size than those before, and OSError
        where it cannot be written."""
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
        """Black ones that take no memory, by camera: the number, size and type of the images."""
        black = np.uint8(0)
        return {name: np.broadcast_to(black, (one.count, *one.frames.shape)) for name, one in self._streams.items()}

    @property
    def scratch(self) -> Path:
        """A folder for what else is held of the episode; it goes with `abort`."""
        return self._staging.path

    @property
    def arrays(self) -> dict[str, FrameStream]:
        """The streams by the names of their arrays."""
        return {f"images/{camera}": stream for camera, stream in self._streams.items()}

    def abort(self) -> None:
        """Removes the files."""
        self._discard()

    def _begin(self, camera: str, shape: tuple[int, ...]) -> None:
        self._streams[camera] = self._arrays.stream(f"images/{camera}", shape, self._staging)


def _encode(stream: FrameStream, image: UInt8[np.ndarray, "_h _w 3"]) -> bytes:
    return stream.frames.encode(image[None])[0]


def _discard(streams: Mapping[str, FrameStream], staging: Staging, owner: int) -> None:
    if os.getpid() != owner:  # forked: they are the other's
        return
    for stream in streams.values():
        stream.close()
    shutil.rmtree(staging.path, ignore_errors=True)
