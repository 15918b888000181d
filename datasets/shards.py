"""Reads and writes the arrays of a store directly in their zarr v3 shard files.

A call into zarr-python costs 1-3 ms whatever its size, and training reads single frames. A shard file holds
concatenated chunks and ends with an index: for each chunk a little-endian pair of u64 offset and length, then the
CRC-32C of the pairs (the "sharding_indexed" codec of the zarr v3 specification).

| array  | chunk            | shard       | a reader                                              |
|--------|------------------|-------------|-------------------------------------------------------|
| Frames | 1 coded image    | 256 images  | decodes one image                                     |
| Rows   | 64 rows, raw     | 4096 rows   | slices the memory-mapped file, without a copy         |
"""

from __future__ import annotations

import os
import resource
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property

import numpy as np
import zarr
from crc32c import crc32c
from jaxtyping import Int, Shaped, UInt64

from vla.datasets.codecs import Codec
from vla.datasets.folder import Buffer, File, Folder, Staging
from vla.datasets.source_files import LFS_POINTER
from vla.errors import InputError

FRAMES_PER_SHARD = 256
ROWS_PER_CHUNK, ROWS_PER_SHARD = 64, 4096
_DESCRIPTORS = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
MAX_OPEN_SHARDS = 4096 if _DESCRIPTORS == resource.RLIM_INFINITY else min(4096, max(8, _DESCRIPTORS // 2))
"""Limit for all arrays of the process: each mapped shard keeps a file descriptor."""
ATTEMPTS = 3
"""Attempts to read an index: in an object store, a writer may replace a shard between the size and index requests."""
DECODED_TOGETHER = 8
"""Minimum number of frames per thread: for fewer, the overhead of a thread is too large."""

_MISSING = 2**64 - 1
_CRC_BYTES = 4

Table = UInt64[np.ndarray, "chunks 2"]


class Shards:
    """The shard files of one array, each with `chunks` chunks. Any shard of a `sparse` array may be missing."""

    def __init__(self, folder: Folder, name: str, chunks: int, dimensions: int, sparse: bool) -> None:
        self.folder, self.name, self.chunks, self.sparse = folder, name, chunks, sparse
        self._tail = "/0" * (dimensions - 1)
        self._opened: dict[int, tuple[File, Table]] = {}
        self.views: dict[int, np.ndarray] = {}
        """Views of rows on the open files, by shard. They are dropped with the files."""

    def path(self, shard: int) -> str:
        """The name of the shard's file in the folder."""
        return f"{self.name}/c/{shard}{self._tail}"

    def open(self, shard: int) -> tuple[File, Table] | None:
        """The file and its index with one row (offset, length) per chunk; None for a missing shard of a sparse array.

        Raises InputError if the shard is missing or damaged.
        """
        opened_shard = self._opened.get(shard)
        if opened_shard is None:
            if self.sparse and not self.folder.exists(self.path(shard)):
                return None
            while len(_open_shards) >= MAX_OPEN_SHARDS:
                owner, oldest = _open_shards.popleft()
                if (shards := owner()) is not None:
                    shards.close(oldest)
            opened_shard = self._opened[shard] = self._read(shard)
            _open_shards.append((weakref.ref(self), shard))
        return opened_shard

    def close(self, shard: int) -> None:
        """Drops the reference to the file. Data that were read from it stay valid."""
        self._opened.pop(shard, None)
        self.views.pop(shard, None)

    def write(self, shard: int, chunks: Sequence[Buffer]) -> None:
        """Replaces the file."""
        self.folder.write(self.path(shard), b"".join([*chunks, self.index([len(chunk) for chunk in chunks])]))
        self.close(shard)

    def index(self, lengths: Sequence[int]) -> bytes:
        """The encoded index of a shard whose first chunks have these lengths and whose other chunks are missing."""
        table = np.full((self.chunks, 2), _MISSING, "<u8")
        table[: len(lengths), 0], table[: len(lengths), 1] = np.cumsum(lengths) - lengths, lengths
        return _with_crc(table.tobytes())

    def take(self, shard: int, staging: Staging) -> None:
        """Replaces the file by the one of the same name in `staging`."""
        self.folder.take(staging, self.path(shard))
        self.close(shard)

    def damaged(self, shard: int, reason: str) -> InputError:
        """The error for a damaged shard."""
        where = f"{self.folder}/{self.path(shard)}"
        return InputError(f"shard {where} is damaged ({reason}): restore it from a copy or record again")

    def _read(self, shard: int) -> tuple[File, Table]:
        length = 16 * self.chunks + _CRC_BYTES
        for _ in range(ATTEMPTS):
            try:
                file = self.folder.open(self.path(shard))
                index = file.ranges([file.size - length], [file.size])[0] if file.size >= length else b""
            except OSError as error:
                raise self.damaged(shard, str(error)) from error
            if index and _crc_fits(index):
                break
        else:
            if file.size >= len(LFS_POINTER) and bytes(file.ranges([0], [len(LFS_POINTER)])[0]) == LFS_POINTER:
                where = f"{self.folder}/{self.path(shard)}"
                raise InputError(f"{where} is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
            raise self.damaged(shard, "its index fails its CRC")
        table = np.frombuffer(index[:-_CRC_BYTES], "<u8").reshape(self.chunks, 2)
        ends = np.where(table[:, 0] == _MISSING, 0, table.sum(axis=1))
        if ends.max() > file.size - length:
            raise self.damaged(shard, "its index points beyond its end")
        return file, table


_open_shards: deque[tuple[weakref.ref[Shards], int]] = deque()
"""The open shards, oldest first, including some that have been closed since."""


class Frames:
    """An array of images of one size and dtype, encoded individually. Missing images of a `sparse` array are black.

    Raises InputError that names the shard if one is damaged.
    """

    def __init__(
        self, folder: Folder, name: str, shape: tuple[int, ...], dtype: np.dtype, codec: Codec, sparse: bool = False
    ) -> None:
        self.shape, self.dtype, self.codec = shape, dtype, codec
        self.shards = Shards(folder, name, FRAMES_PER_SHARD, 1 + len(shape), sparse)

    def read(self, indices: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n ..."]:
        """The decoded frames at `indices`. Many frames are decoded in several threads."""
        frames = np.empty((len(indices), *self.shape), self.dtype)
        stored = self.stored(indices)

        def decode(block: slice) -> None:
            self._decode(stored[block], indices[block], frames[block])

        _in_slices(decode, len(indices), 1 if self.codec.name == "raw" else _threads())
        return frames

    def for_each(self, indices: Int[np.ndarray, "n"], use: Callable[[int, np.ndarray], None]) -> None:
        """Implements `vla.common.stored_image.ImageSource`. Each thread decodes its frames into the same buffer."""
        stored = self.stored(indices)

        def decode(block: slice) -> None:
            frame = np.empty((1, *self.shape), self.dtype)
            for position in range(block.start, block.stop):
                self._decode(stored[position : position + 1], indices[position : position + 1], frame)
                use(position, frame[0])

        _in_slices(decode, len(indices), _threads())

    def stored(self, indices: Int[np.ndarray, "n"]) -> list[Buffer]:
        """The encoded frames at `indices`, as stored in the files."""
        encoded: list[Buffer] = [b""] * len(indices)
        numbers, rows = np.divmod(indices, FRAMES_PER_SHARD)
        for shard in np.unique(numbers).tolist():
            positions = np.flatnonzero(numbers == shard)
            opened = self.shards.open(shard)
            if opened is None:
                for position in positions:
                    encoded[position] = self.blank
                continue
            file, table = opened
            entries = table[rows[positions]]
            if (entries[:, 0] == _MISSING).any():
                missing = rows[positions][entries[:, 0] == _MISSING][0]
                raise self.shards.damaged(shard, f"frame {missing} of the shard is missing")
            buffers = file.ranges(entries[:, 0].tolist(), entries.sum(axis=1).tolist())
            for position, buffer in zip(positions.tolist(), buffers, strict=True):
                encoded[position] = buffer
        return encoded

    @cached_property
    def blank(self) -> bytes:
        """An encoded black frame."""
        return self.encode(np.zeros((1, *self.shape), self.dtype))[0]

    def encode(self, frames: Shaped[np.ndarray, "n ..."]) -> list[bytes]:
        """Encodes frames individually. Many frames are encoded in several threads."""
        encode = self.codec.encode
        if len(frames) < 2 * DECODED_TOGETHER or self.codec.name == "raw":
            coded = [encode(frame) for frame in frames]
        else:
            coded = list(pool().map(encode, frames))
        return [_with_crc(chunk) if self.codec.crc else chunk for chunk in coded]

    def write(self, start: int, stored: Sequence[Buffer]) -> None:
        """Writes encoded frames from `start` on. Later frames of their last shard are dropped.

        Raises InputError if the shard that holds the frames before `start` is damaged.
        """
        end = start + len(stored)
        for shard in range(start // FRAMES_PER_SHARD, -(-end // FRAMES_PER_SHARD)):
            base = shard * FRAMES_PER_SHARD
            first = max(start, base)
            preceding = self.stored(np.arange(base, first)) if first > base else []
            self.shards.write(shard, [*preceding, *stored[first - start : base + FRAMES_PER_SHARD - start]])

    def _decode(self, stored: Sequence[Buffer], indices: np.ndarray, out: np.ndarray) -> None:
        for buffer, index, frame in zip(stored, indices.tolist(), out, strict=True):
            try:
                if self.codec.crc:
                    if not _crc_fits(buffer):
                        raise ValueError("its CRC does not match")
                    buffer = buffer[:-_CRC_BYTES]
                self.codec.decode(buffer, frame)
            except (ValueError, RuntimeError) as error:
                shard, row = divmod(index, FRAMES_PER_SHARD)
                raise self.shards.damaged(shard, f"frame {row} of the shard: {error}") from error


class Rows:
    """An array of uncompressed numbers: its first `count` rows.

    `rows[key]` takes an index, a slice of step 1, or an array of indices. Do not write to the returned array: it may
    be a view of a file. Missing rows of a `sparse` array are `fill_value`.

    Raises InputError that names the shard if one is damaged.
    """

    def __init__(
        self, folder: Folder, name: str, shape: tuple[int, ...], dtype: np.dtype, count: int, sparse: bool = False
    ) -> None:
        self.shape, self.dtype = (count, *shape), dtype
        self.shards = Shards(folder, name, ROWS_PER_SHARD // ROWS_PER_CHUNK, 1 + len(shape), sparse)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: int | slice | Int[np.ndarray, "*n"]) -> Shaped[np.ndarray, "..."]:
        if isinstance(key, slice):
            start, stop, _ = key.indices(len(self))
            return self._between(start, max(start, stop))
        if isinstance(key, np.ndarray):
            return self._at(key)
        shard, row = divmod(range(len(self))[key], ROWS_PER_SHARD)
        return self._view(shard)[row, ...]

    def _between(self, start: int, stop: int) -> np.ndarray:
        first, last = start // ROWS_PER_SHARD, max(start, stop - 1) // ROWS_PER_SHARD
        if start == stop:
            return np.empty((0, *self.shape[1:]), self.dtype)
        views = [self._view(shard) for shard in range(first, last + 1)]
        begin, end = start - first * ROWS_PER_SHARD, stop - first * ROWS_PER_SHARD
        return views[0][begin:end] if len(views) == 1 else np.concatenate(views)[begin:end]

    def _at(self, indices: np.ndarray) -> np.ndarray:
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {len(self)}")
        numbers, rows = np.divmod(indices, ROWS_PER_SHARD)
        out = np.empty((*indices.shape, *self.shape[1:]), self.dtype)
        for shard in np.unique(numbers).tolist():
            selected = numbers == shard
            out[selected] = self._view(shard)[rows[selected]]
        return out

    def write(self, start: int, rows: Shaped[np.ndarray, "n ..."]) -> None:
        """Writes rows from `start` on. Later rows of their last shard are dropped."""
        end = start + len(rows)
        for shard in range(start // ROWS_PER_SHARD, -(-end // ROWS_PER_SHARD)):
            base = shard * ROWS_PER_SHARD
            first = max(start, base)
            new = np.asarray(rows[first - start : base + ROWS_PER_SHARD - start], self.dtype)
            preceding = self._view(shard)[: first - base] if first > base else new[:0]
            fill = np.full((-(len(preceding) + len(new)) % ROWS_PER_CHUNK, *self.shape[1:]), fill_value(self.dtype))
            content = np.concatenate([preceding, new, fill.astype(self.dtype)]).tobytes()
            size = len(content) * ROWS_PER_CHUNK // (len(preceding) + len(new) + len(fill)) or 1
            self.shards.write(shard, [bytes(chunk) for chunk in _split(content, size)])
        self.shape = (max(end, 0), *self.shape[1:])

    def _view(self, shard: int) -> np.ndarray:
        view = self.shards.views.get(shard)
        if view is None:
            view = self.shards.views[shard] = self._map(shard)
        return view

    def _map(self, shard: int) -> np.ndarray:
        opened = self.shards.open(shard)
        if opened is None:
            return np.broadcast_to(self.dtype.type(fill_value(self.dtype)), (ROWS_PER_SHARD, *self.shape[1:]))
        file, table = opened
        row = self.dtype.itemsize * int(np.prod(self.shape[1:], dtype=np.int64))
        count = -(-(min(len(self), (shard + 1) * ROWS_PER_SHARD) - shard * ROWS_PER_SHARD) // ROWS_PER_CHUNK)
        size = row * ROWS_PER_CHUNK
        # Only if the chunks are contiguous and in order can the rows be one view.
        if (table[:count, 0] != np.arange(count) * size).any() or (table[:count, 1] != size).any():
            raise self.shards.damaged(shard, "its chunks are not in order")
        return np.frombuffer(file.ranges([0], [count * size])[0], self.dtype).reshape(-1, *self.shape[1:])


def fill_value(dtype: np.dtype) -> float | int | bool:
    """The value of missing entries: NaN for floats, 0 otherwise."""
    return float("nan") if dtype.kind == "f" else dtype.type(0).item()


def create_frames(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, codec: Codec) -> None:
    """Creates an empty array for `Frames`."""
    group.create_array(
        name,
        shape=(0, *shape),
        chunks=(1, *shape),
        shards=(FRAMES_PER_SHARD, *shape),
        dtype=dtype,
        overwrite=True,
        **codec.zarr(),
    )


def create_rows(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Creates an empty array for `Rows`."""
    group.create_array(
        name,
        shape=(0, *shape),
        chunks=(ROWS_PER_CHUNK, *shape),
        shards=(ROWS_PER_SHARD, *shape),
        dtype=dtype,
        fill_value=fill_value(dtype),
        compressors=None,
        overwrite=True,
    )


def decode_alone() -> None:
    """Makes this process decode in the calling thread only, for use in one of several loader processes."""
    global _alone
    _alone = True


_alone = False


def cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    return 1 if _alone else min(8, cores())


def _in_slices(do: Callable[[slice], None], count: int, threads: int) -> None:
    """Calls `do` with slices that cover 0 to `count`, in several threads if `count` is large."""
    if threads == 1 or count < 2 * DECODED_TOGETHER:
        do(slice(0, count))
        return
    size = max(DECODED_TOGETHER, -(-count // (4 * threads)))
    list(pool().map(do, [slice(start, min(start + size, count)) for start in range(0, count, size)]))


@cache
def pool() -> ThreadPoolExecutor:
    """The thread pool for encoding and decoding."""
    return ThreadPoolExecutor(_threads(), "decode")


# A forked process has none of its parent's threads, and would wait for them forever.
os.register_at_fork(after_in_child=pool.cache_clear)


def _split(content: bytes, size: int) -> list[memoryview]:
    view = memoryview(content)
    return [view[start : start + size] for start in range(0, len(content), size)]


def _with_crc(content: bytes) -> bytes:
    return content + crc32c(content).to_bytes(_CRC_BYTES, "little")


def _crc_fits(content: Buffer) -> bool:
    return crc32c(content[:-_CRC_BYTES]) == int.from_bytes(content[-_CRC_BYTES:], "little")
