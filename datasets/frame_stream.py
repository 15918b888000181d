"""Frames of one array, written to staged shard files as they arrive and moved into the store at the end."""

from __future__ import annotations

from io import FileIO

import numpy as np
from crc32c import crc32c

from vla.datasets.crc import Digest
from vla.datasets.folder import Buffer, Staging
from vla.datasets.shards import FRAMES_PER_SHARD, Frames


class FrameStream:
    """The frames of an episode that is being recorded and will begin at frame `start` of the array `frames`.

    They are appended to shard files in `staging` under the names of the store's files. Only the lengths of one shard's
    chunks are held in memory. The first file begins with a copy of the stored frames of its shard. Raises OSError if
    the disk is full, and InputError if those stored frames are damaged.
    """

    def __init__(self, frames: Frames, start: int, staging: Staging) -> None:
        self.frames, self.start, self.count = frames, start, 0
        self._staging = staging
        self._staged = Frames(staging, frames.shards.name, frames.shape, frames.dtype, frames.codec)
        self._crc = self._size = 0
        self._file: FileIO | None = None
        self._lengths: list[int] = []
        if preceding := start % FRAMES_PER_SHARD:
            for chunk in frames.stored(np.arange(start - preceding, start)):
                self._put(chunk)
            frames.shards.close(start // FRAMES_PER_SHARD)

    @property
    def digest(self) -> Digest:
        """The digest of the encoded frames, concatenated."""
        return Digest(self._crc, self._size)

    def add(self, coded: bytes) -> None:
        """Appends a frame that `Frames.encode` encoded."""
        self._put(coded)
        self._crc, self._size = crc32c(coded, self._crc), self._size + len(coded)
        self.count += 1

    def move(self, frames: Frames, start: int) -> None:
        """Writes the frames into the array from `start` on.

        The files are renamed if `start` is still the planned start. If another episode was stored meanwhile, the
        frames are copied.
        """
        if self._lengths:
            self._end_shard()
        stop = self.start + self.count
        if start != self.start:
            frames.write(start, self._staged.stored(np.arange(self.start, stop)))
            return
        for shard in range(start // FRAMES_PER_SHARD, -(-stop // FRAMES_PER_SHARD)):
            frames.shards.take(shard, self._staging)

    def close(self) -> None:
        """Closes the file. The caller removes the staged files."""
        if self._file is not None:
            self._file.close()

    def _put(self, chunk: Buffer) -> None:
        if not self._lengths:
            name = self.frames.shards.path((self.start + self.count) // FRAMES_PER_SHARD)
            self._file = self._staging.file(name).open("wb", buffering=0)
        self._write(chunk)
        self._lengths.append(len(chunk))
        if len(self._lengths) == FRAMES_PER_SHARD:
            self._end_shard()

    def _end_shard(self) -> None:
        self._write(self.frames.shards.index(self._lengths))
        self._lengths = []
        self.close()

    def _write(self, content: Buffer) -> None:
        assert self._file is not None
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            where = f"{self.frames.shards.folder}/{self.frames.shards.name}"
            raise OSError(error.errno, error.strerror, where) from error
