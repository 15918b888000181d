"""Arrays of a store, read from and written to their zarr v3 shard files directly.

A call into zarr-python costs 1-3 ms whatever its size, and training reads single frames. A shard file holds
chunks, one after another, and ends with its index: for each chunk a little-endian pair of u64 offset and
length, then the CRC-32C of the pairs (the "sharding_indexed" codec of the zarr v3 specification).

| array  | chunk            | shard       | a reader                                              |
|--------|------------------|-------------|-------------------------------------------------------|
| Frames | 1 coded image    | 256 images  | decodes one image                                     |
| Rows   | 64 rows, raw     | 4096 rows   | takes rows out of the mapped file, without a copy     |
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
"""Of all arrays of the process: each mapped shard keeps a file descriptor."""
ATTEMPTS = 3
"""Readings of an index: in an object store a writer may replace the shard between the requests for size and index."""
DECODED_TOGETHER = 8
"""Frames that one thread decodes at least: fewer are not worth handing over."""

_MISSING = 2**64 - 1
_CRC_BYTES = 4

Table = UInt64[np.ndarray, "chunks 2"]


class Shards:
    """The shard files of one array: `chunks` in each, as bytes. Of a `sparse` array any may be missing."""

    def __init__(self, folder: Folder, name: str, chunks: int, dimensions: int, sparse: bool) -> None:
        self.folder, self.name, self.chunks, self.sparse = folder, name, chunks, sparse
        self._tail = "/0" * (dimensions - 1)
        self._opened: dict[int, tuple[File, Table]] = {}
        self.views: dict[int, np.ndarray] = {}
        """Rows by shard, on the open files: they close together."""

    def path(self, shard: int) -> str:
        return f"{self.name}/c/{shard}{self._tail}"

    def open(self, shard: int) -> tuple[File, Table] | None:
        """The file and its index, a row (offset, length) a chunk; None when it is rightly missing.

        Raises InputError when it is missing or damaged.
        """
        found = self._opened.get(shard)
        if found is None:
            if self.sparse and not self.folder.exists(self.path(shard)):
                return None
            while len(_open_shards) >= MAX_OPEN_SHARDS:
                owner, oldest = _open_shards.popleft()
                if (shards := owner()) is not None:
                    shards.close(oldest)
            found = self._opened[shard] = self._read(shard)
            _open_shards.append((weakref.ref(self), shard))
        return found

    def close(self, shard: int) -> None:
        """Lets go of the file; what was read of it stays readable."""
        self._opened.pop(shard, None)
        self.views.pop(shard, None)

    def write(self, shard: int, chunks: Sequence[Buffer]) -> None:
        """Replaces the file."""
        self.folder.write(self.path(shard), b"".join([*chunks, self.index([len(chunk) for chunk in chunks])]))
        self.close(shard)

    def index(self, lengths: Sequence[int]) -> bytes:
        """What a file ends with whose first chunks have these lengths, and whose others are missing."""
        table = np.full((self.chunks, 2), _MISSING, "<u8")
        table[: len(lengths), 0], table[: len(lengths), 1] = np.cumsum(lengths) - lengths, lengths
        return _with_crc(table.tobytes())

    def take(self, shard: int, staging: Staging) -> None:
        """Replaces the file by that of `staging`, where it has the same name."""
        self.folder.take(staging, self.path(shard))
        self.close(shard)

    def damaged(self, shard: int, reason: str) -> InputError:
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
"""The shards that are open, the oldest first, and some that were closed since."""


class Frames:
    """Images of one size and dtype, each coded by itself. Those missing of a `sparse` array are black.

    Raises InputError naming the shard that is damaged.
    """

    def __init__(
        self, folder: Folder, name: str, shape: tuple[int, ...], dtype: np.dtype, codec: Codec, sparse: bool = False
    ) -> None:
        self.shape, self.dtype, self.codec = shape, dtype, codec
        self.shards = Shards(folder, name, FRAMES_PER_SHARD, 1 + len(shape), sparse)

    def read(self, indices: Int[np.ndarray, "n"]) -> Shaped[np.ndarray, "n ..."]:
        """The frames at `indices`, decoded straight into their places; several at a time where they are many."""
        frames = np.empty((len(indices), *self.shape), self.dtype)
        stored = self.stored(indices)

        def decode(part: slice) -> None:
            self._decode(stored[part], indices[part], frames[part])

        _in_parts(decode, len(indices), 1 if self.codec.name == "raw" else _threads())
        return frames

    def for_each(self, indices: Int[np.ndarray, "n"], use: Callable[[int, np.ndarray], None]) -> None:
        """As `vla.common.stored_image.ImageSource`: a thread decodes one frame after the other into the same memory."""
        stored = self.stored(indices)

        def decode(part: slice) -> None:
            frame = np.empty((1, *self.shape), self.dtype)
            for place in range(part.start, part.stop):
                self._decode(stored[place : place + 1], indices[place : place + 1], frame)
                use(place, frame[0])

        _in_parts(decode, len(indices), _threads())

    def stored(self, indices: Int[np.ndarray, "n"]) -> list[Buffer]:
        """The bytes of the frames as they are in the files."""
        found: list[Buffer] = [b""] * len(indices)
        numbers, rows = np.divmod(indices, FRAMES_PER_SHARD)
        for shard in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == shard)
            opened = self.shards.open(shard)
            if opened is None:
                for place in places:
                    found[place] = self.blank
                continue
            file, table = opened
            entries = table[rows[places]]
            if (entries[:, 0] == _MISSING).any():
                missing = rows[places][entries[:, 0] == _MISSING][0]
                raise self.shards.damaged(shard, f"frame {missing} of the shard is missing")
            buffers = file.ranges(entries[:, 0].tolist(), entries.sum(axis=1).tolist())
            for place, buffer in zip(places.tolist(), buffers, strict=True):
                found[place] = buffer
        return found

    @cached_property
    def blank(self) -> bytes:
        """A black frame, coded."""
        return self.encode(np.zeros((1, *self.shape), self.dtype))[0]

    def encode(self, frames: Shaped[np.ndarray, "n ..."]) -> list[bytes]:
        encode = self.codec.encode
        if len(frames) < 2 * DECODED_TOGETHER or self.codec.name == "raw":
            coded = [encode(frame) for frame in frames]
        else:
            coded = list(pool().map(encode, frames))
        return [_with_crc(chunk) if self.codec.crc else chunk for chunk in coded]

    def write(self, start: int, stored: Sequence[Buffer]) -> None:
        """Writes frames from `start` on, as `encode` or `stored` gave them, and drops what lies behind them in their
        last shard. Raises InputError when the shard that holds the frames before `start` is damaged.
        """
        end = start + len(stored)
        for shard in range(start // FRAMES_PER_SHARD, -(-end // FRAMES_PER_SHARD)):
            base = shard * FRAMES_PER_SHARD
            first = max(start, base)
            kept = self.stored(np.arange(base, first)) if first > base else []
            self.shards.write(shard, [*kept, *stored[first - start : base + FRAMES_PER_SHARD - start]])

    def _decode(self, stored: Sequence[Buffer], indices: np.ndarray, out: np.ndarray) -> None:
        for buffer, index, frame in zip(stored, indices.tolist(), out, strict=True):
            try:
                if self.codec.crc:
                    if not _crc_fits(buffer):
                        raise ValueError("its CRC does not fit")
                    buffer = buffer[:-_CRC_BYTES]
                self.codec.decode(buffer, frame)
            except (ValueError, RuntimeError) as error:
                shard, row = divmod(index, FRAMES_PER_SHARD)
                raise self.shards.damaged(shard, f"frame {row} of the shard: {error}") from error


class Rows:
    """The first `count` rows of numbers, uncompressed. `rows[key]` takes an index, a slice of step 1, or an array of
    indices; what it returns is not to be written. Rows missing of a `sparse` array are `fill_value`.

    Raises InputError naming the shard that is damaged.
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
        parts = [self._view(shard) for shard in range(first, last + 1)]
        begin, end = start - first * ROWS_PER_SHARD, stop - first * ROWS_PER_SHARD
        return parts[0][begin:end] if len(parts) == 1 else np.concatenate(parts)[begin:end]

    def _at(self, indices: np.ndarray) -> np.ndarray:
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"rows {indices.min()} to {indices.max()} of {len(self)}")
        numbers, rows = np.divmod(indices, ROWS_PER_SHARD)
        out = np.empty((*indices.shape, *self.shape[1:]), self.dtype)
        for shard in np.unique(numbers).tolist():
            here = numbers == shard
            out[here] = self._view(shard)[rows[here]]
        return out

    def write(self, start: int, rows: Shaped[np.ndarray, "n ..."]) -> None:
        """Writes rows from `start` on, and drops what lies behind them in their last shard."""
        end = start + len(rows)
        for shard in range(start // ROWS_PER_SHARD, -(-end // ROWS_PER_SHARD)):
            base = shard * ROWS_PER_SHARD
            first = max(start, base)
            new = np.asarray(rows[first - start : base + ROWS_PER_SHARD - start], self.dtype)
            kept = self._view(shard)[: first - base] if first > base else new[:0]
            fill = np.full((-(len(kept) + len(new)) % ROWS_PER_CHUNK, *self.shape[1:]), fill_value(self.dtype))
            content = np.concatenate([kept, new, fill.astype(self.dtype)]).tobytes()
            size = len(content) * ROWS_PER_CHUNK // (len(kept) + len(new) + len(fill)) or 1
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
        wanted = -(-(min(len(self), (shard + 1) * ROWS_PER_SHARD) - shard * ROWS_PER_SHARD) // ROWS_PER_CHUNK)
        size = row * ROWS_PER_CHUNK
        # Chunks that lie one after another are rows that do.
        if (table[:wanted, 0] != np.arange(wanted) * size).any() or (table[:wanted, 1] != size).any():
            raise self.shards.damaged(shard, "its chunks are not in order")
        return np.frombuffer(file.ranges([0], [wanted * size])[0], self.dtype).reshape(-1, *self.shape[1:])


def fill_value(dtype: np.dtype) -> float | int | bool:
    """What stands where an episode has no value."""
    return float("nan") if dtype.kind == "f" else dtype.type(0).item()


def create_frames(group: zarr.Group, name: str, shape: tuple[int, ...], dtype: np.dtype, codec: Codec) -> None:
    """An empty array for `Frames`."""
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
    """An empty array for `Rows`."""
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
    """Makes this process decode in the thread that asks: it is one of several that read beside each other."""
    global _alone
    _alone = True


_alone = False


def cores() -> int:
    """The processor's cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _threads() -> int:
    return 1 if _alone else min(8, cores())


def _in_parts(do: Callable[[slice], None], count: int, threads: int) -> None:
    """Does 0 to `count` in slices, several at a time where they are many."""
    if threads == 1 or count < 2 * DECODED_TOGETHER:
        do(slice(0, count))
        return
    size = max(DECODED_TOGETHER, -(-count // (4 * threads)))
    list(pool().map(do, [slice(start, min(start + size, count)) for start in range(0, count, size)]))


@cache
def pool() -> ThreadPoolExecutor:
    """The threads that encode and decode."""
    return ThreadPoolExecutor(_threads(), "decode")


# A forked process has none of its parent's threads, and would wait for them.
os.register_at_fork(after_in_child=pool.cache_clear)


def _split(content: bytes, size: int) -> list[memoryview]:
    view = memoryview(content)
    return [view[start : start + size] for start in range(0, len(content), size)]


def _with_crc(content: bytes) -> bytes:
    return content + crc32c(content).to_bytes(_CRC_BYTES, "little")


def _crc_fits(content: Buffer) -> bool:
    return crc32c(content[:-_CRC_BYTES]) == int.from_bytes(content[-_CRC_BYTES:], "little")
