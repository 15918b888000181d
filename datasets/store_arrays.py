"""Access to the arrays of a store by name: numbers as `Rows`, images and depth as `Frames`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import zarr
from jaxtyping import Float

from vla.common.points import arrange_points
from vla.datasets.array_length import ArrayLength
from vla.datasets.codecs import DEFAULT, Codec, codec
from vla.datasets.folder import Folder, Staging, array, reading
from vla.datasets.frame_stream import FrameStream
from vla.datasets.shards import Frames, Rows, create_frames, create_rows, fill_value
from vla.types import Episode

Content = Mapping[str, Sequence[Any]]
"""Rows by array name as stored in the files: a list of encoded images, or all numbers as one array."""
Shape = tuple[tuple[int, ...], np.dtype]
"""A row's shape and dtype."""
CODED = ("images/", "depth/")
ALWAYS = ("state", "action", "time")
"""Arrays that every episode has, in addition to the images of every camera."""
PADDED = ("points", "chunks")
"""Arrays whose steps may have fewer rows than the store's. Missing rows are NaN (unknown)."""


class StoreArrays:
    """The arrays of a store. The first `count` rows of every array are committed."""

    def __init__(self, folder: Folder, group: zarr.Group, image_codec: str, count: int) -> None:
        self.folder, self.count = folder, count
        self._group, self._codec = group, image_codec
        self._opened: dict[str, zarr.Array[Any]] = {}
        self._lengths: dict[str, ArrayLength] = {}
        self._rows: dict[str, Rows] = {}
        self._frames: dict[str, Frames] = {}

    def rows(self, name: str) -> Rows:
        """An array of numbers. Raises InputError if it is missing or damaged."""
        if name not in self._rows:
            shape, dtype = self.shape(name)
            self._rows[name] = Rows(self.folder, name, shape, dtype, self.count, _is_optional(name))
        return self._rows[name]

    def frames(self, name: str) -> Frames:
        """An array of images. Raises InputError if it is missing or damaged."""
        if name not in self._frames:
            shape, dtype = self.shape(name)
            self._frames[name] = Frames(self.folder, name, shape, dtype, self._coding(name), _is_optional(name))
        return self._frames[name]

    def shape(self, name: str) -> Shape:
        """The shape and dtype of a row. Raises InputError if the array is missing or damaged."""
        stored = self._array(name)
        return stored.shape[1:], stored.dtype

    def length(self, name: str) -> int:
        """The number of rows of the array, including uncommitted ones."""
        if name not in self._lengths:
            self._lengths[name] = ArrayLength(self.folder, name)
        return self._lengths[name].value

    def stored(self, name: str, rows: slice) -> Sequence[Any]:
        """Committed rows as stored in the files: images encoded, numbers as one array."""
        if is_rows(name):
            return [self.rows(name)[rows]]
        return self.frames(name).stored(np.arange(rows.start, rows.stop))

    def stream(self, name: str, shape: tuple[int, ...], staging: Staging) -> FrameStream:
        """A stream for images of this shape, after the committed rows. The array need not exist yet."""
        frames = Frames(self.folder, name, shape, np.dtype(np.uint8), self._coding(name))
        return FrameStream(frames, self.count, staging)

    def create(self, shapes: Mapping[str, Shape]) -> None:
        """Creates empty arrays. They replace arrays of the same name that a killed writer left."""
        for name, (shape, dtype) in shapes.items():
            for cache in (self._opened, self._lengths, self._rows, self._frames):
                cache.pop(name, None)
            if is_rows(name):
                create_rows(self._group, name, shape, dtype)
            else:
                create_frames(self._group, name, shape, dtype, self._coding(name))

    def write(
        self,
        names: Iterable[str],
        content: Content,
        steps: int,
        streams: Mapping[str, FrameStream] = MappingProxyType({}),
    ) -> None:
        """Writes `steps` rows after the committed ones, in the form of `stored`. Arrays without content are filled.

        Images are written last: those of `streams` are in files already and need no more space on a full disk.
        """
        for name in sorted(names, key=lambda name: (not is_rows(name), name)):
            stop = self.count + steps
            self.resize(name, stop)
            if is_rows(name):
                shape, dtype = self.shape(name)
                blank = np.full((steps, *shape), fill_value(dtype), dtype)
                self.rows(name).write(self.count, content[name][0] if name in content else blank)
            elif name in streams:
                streams[name].move(self.frames(name), self.count)
            else:
                frames = self.frames(name)
                frames.write(self.count, content.get(name, [frames.blank] * steps))

    def resize(self, name: str, count: int) -> None:
        """Sets the number of rows of the array."""
        if count >= self.length(name):
            self._lengths[name].set(count)
            return
        for cache in (self._opened, self._lengths):
            cache.pop(name, None)
        stream = self._array(name)
        stream.resize((count, *stream.shape[1:]))

    def _array(self, name: str) -> zarr.Array[Any]:
        # zarr-python takes a millisecond to open an array.
        if name not in self._opened:
            with reading(f"{self.folder}/{name}"):
                self._opened[name] = array(self._group, name)
        return self._opened[name]

    def _coding(self, name: str) -> Codec:
        """The store's codec; depth is never lossy."""
        selected = codec(self._codec)
        return selected if selected.lossless or not name.startswith("depth/") else codec(DEFAULT)

    def forget(self, count: int) -> None:
        """Clears the caches after the arrays have changed. `count` is the new number of committed rows."""
        self.count = count
        self._rows.clear()
        self._frames.clear()


def padded(
    name: str, values: Float[np.ndarray, "t _k _c"], rows: int, cameras: Sequence[str], target_cameras: Sequence[str]
) -> Float[np.ndarray, "t _h _c"]:
    """Pads the steps of an array of `PADDED` with NaN to `rows` rows, and reorders points to the target cameras.

    Raises InputError if there are more points than rows. Chunks that are too long are returned unchanged.
    """
    if name == "points":
        return arrange_points(values, cameras, target_cameras, rows)
    missing = max(rows - values.shape[1], 0)
    return np.pad(values, ((0, 0), (0, missing), (0, 0)), constant_values=np.nan)


def is_rows(name: str) -> bool:
    """Whether the array holds numbers and not images or depth."""
    return not name.startswith(CODED)


def _is_optional(name: str) -> bool:
    """Whether the first episodes may lack the array."""
    return name not in ALWAYS and not name.startswith("images/")


def by_name(episode: Episode) -> dict[str, np.ndarray]:
    """The episode's arrays by their names in the store, in the stored dtypes (little-endian)."""
    arrays = {f"images/{camera}": episode.images[camera] for camera in episode.embodiment.cameras}
    arrays |= {name: np.asarray(getattr(episode, name), "<f8") for name in ALWAYS}
    optional = {name: getattr(episode, name) for name in ("points", "chunks")}
    arrays |= {name: np.asarray(values, "<f8") for name, values in optional.items() if values is not None}
    arrays |= {f"depth/{camera}": frames for camera, frames in episode.depth.items()}
    arrays |= {f"extras/{name}": values for name, values in episode.extras.items()}
    return {name: np.asarray(values, values.dtype.newbyteorder("<")) for name, values in arrays.items()}


def names_under(kind: str, names: Iterable[str]) -> list[str]:
    """The array names below `kind`/, without that prefix: cameras of "depth", names of "extras"."""
    return [name.removeprefix(f"{kind}/") for name in names if name.startswith(f"{kind}/")]
