"""The frames of an image array, read from and written to its zarr v3 shard files directly.

A call into zarr-python costs 1-3 ms whatever its size, and training reads single frames. A shard file holds
compressed chunks (one frame each here) and ends with its index: for each chunk a little-endian pair of
u64 offset and length, then the CRC-32C of the pairs (the "sharding_indexed" codec of the zarr v3 spec).
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from crc32c import crc32c
from jaxtyping import UInt8, UInt64
from numcodecs.zstd import compress, decompress
from zarr.codecs import Crc32cCodec, ZstdCodec

from vla.errors import InputError

SHARD_FRAMES = 256
ZSTD_LEVEL = 1
MAX_OPEN_SHARDS = 256
"""Each mapped shard keeps a file descriptor; processes are often limited to 1024."""

_MISSING = 2**64 - 1
_CRC_BYTES = 4
_INDEX_BYTES = 16 * SHARD_FRAMES + _CRC_BYTES


def create_image_array(group: zarr.Group, name: str, height: int, width: int) -> zarr.Array[Any]:
    """An empty (0, height, width, 3) uint8 array: one lossless frame a chunk, each with its CRC-32C."""
    return group.create_array(
        name,
        shape=(0, height, width, 3),
        chunks=(1, height, width, 3),
        shards=(SHARD_FRAMES, height, width, 3),
        dtype="uint8",
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        overwrite=True,
    )


def write_frames(folder: Path, start: int, frames: UInt8[np.ndarray, "n h w 3"]) -> None:
    """Writes frames `start` to `start + n` of the image array in `folder`, and drops what lies behind them
    in their last shard.

    Each shard file is replaced whole, so that a reader finds the old one or the new one. Raises InputError
    when the shard that holds the frames before `start` is damaged.
    """
    frames, end = np.ascontiguousarray(frames), start + len(frames)
    for shard in range(start // SHARD_FRAMES, -(-end // SHARD_FRAMES)):
        path, base = _shard_path(folder, shard), shard * SHARD_FRAMES
        first = max(start, base)
        chunks = _encoded(path, first - base)
        chunks += [
            _with_crc(compress(frame, ZSTD_LEVEL)) for frame in frames[first - start : base + SHARD_FRAMES - start]
        ]
        table = np.full((SHARD_FRAMES, 2), _MISSING, "<u8")
        lengths = np.array([len(chunk) for chunk in chunks])
        table[: len(chunks)] = np.stack([np.cumsum(lengths) - lengths, lengths], axis=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.partial")
        unfinished.write_bytes(b"".join([*chunks, _with_crc(table.tobytes())]))
        unfinished.replace(path)


class ShardReader:
    """Frames of the image array in `folder`, as written by `create_image_array`."""

    def __init__(self, folder: Path, height: int, width: int) -> None:
        self.folder = folder
        self.frame_shape = (height, width, 3)
        self._shards: dict[int, tuple[mmap.mmap, UInt64[np.ndarray, "n 2"]]] = {}

    def read(self, indices: np.ndarray) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames at `indices`. Raises InputError naming the shard file when it is missing or damaged."""
        frames = np.empty((len(indices), *self.frame_shape), np.uint8)
        for frame, index in zip(frames, indices.tolist(), strict=True):
            self._decode(index, frame)
        return frames

    def forget(self) -> None:
        """Drops the mapped shards: call it after the array was written."""
        self._shards.clear()

    def _decode(self, index: int, out: UInt8[np.ndarray, "h w 3"]) -> None:
        shard, row = divmod(index, SHARD_FRAMES)
        data, table = self._shards.get(shard) or self._map(shard)
        chunk = _chunk(data, table, row, _shard_path(self.folder, shard))
        decompress(chunk[:-_CRC_BYTES], out)

    def _map(self, shard: int) -> tuple[mmap.mmap, UInt64[np.ndarray, "n 2"]]:
        if len(self._shards) >= MAX_OPEN_SHARDS:
            del self._shards[next(iter(self._shards))]
        self._shards[shard] = _open(_shard_path(self.folder, shard))
        return self._shards[shard]


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / "c" / str(shard) / "0" / "0" / "0"


def _open(path: Path) -> tuple[mmap.mmap, UInt64[np.ndarray, "n 2"]]:
    """The mapped shard file and its index, a row (offset, length) for each frame."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    index = data[-_INDEX_BYTES:]
    if len(data) < _INDEX_BYTES or not _crc_fits(index):
        raise _damaged(path, "its index fails its CRC")
    return data, np.frombuffer(index[:-_CRC_BYTES], "<u8").reshape(SHARD_FRAMES, 2)


def _chunk(data: mmap.mmap, table: UInt64[np.ndarray, "n 2"], row: int, path: Path) -> memoryview:
    """One frame's bytes as stored: compressed, then their CRC."""
    start, length = (int(value) for value in table[row])
    if start + length > len(data) - _INDEX_BYTES or length <= _CRC_BYTES:
        raise _damaged(path, f"frame {row} of the shard is missing")
    chunk = memoryview(data)[start : start + length]
    if not _crc_fits(chunk):
        raise _damaged(path, f"frame {row} of the shard fails its CRC")
    return chunk


def _encoded(path: Path, rows: int) -> list[bytes]:
    """The first `rows` frames of a shard as stored."""
    if rows == 0:
        return []
    data, table = _open(path)
    return [bytes(_chunk(data, table, row, path)) for row in range(rows)]


def _with_crc(content: bytes) -> bytes:
    return content + crc32c(content).to_bytes(_CRC_BYTES, "little")


def _crc_fits(content: bytes | memoryview) -> bool:
    return crc32c(content[:-_CRC_BYTES]) == int.from_bytes(content[-_CRC_BYTES:], "little")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"shard {path} is damaged ({reason}): restore it from a copy or record again")
