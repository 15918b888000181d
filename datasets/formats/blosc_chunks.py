"""Chunks of zarr arrays that are compressed by Blosc: whether their files are whole.

Blosc decompresses a chunk that is cut short without an error, from whatever lies in memory behind it. Its header says
how long it is: bytes 12 to 16, little-endian.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import InputError

if TYPE_CHECKING:
    import zarr

HEADER = 16
"""Bytes."""


def check_chunks(array: zarr.Array, folder: Path, start: int, stop: int) -> None:
    """Raises InputError that names the file of a chunk of rows `start` to before `stop` that is cut short or too long.

    `folder` is the array's own. Chunks that are not there are zarr's own affair, and so are other compressors.
    """
    if [type(codec).__name__ for codec in array.compressors] not in (["Blosc"], ["BloscCodec"]) or array.shards:
        return
    rows = range(start // array.chunks[0], -(-stop // array.chunks[0]))
    others = (range(-(-size // chunk)) for size, chunk in zip(array.shape[1:], array.chunks[1:], strict=True))
    for at in itertools.product(rows, *others):
        file = folder / array.metadata.encode_chunk_key(at)
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            header, size = opened.read(HEADER), file.stat().st_size
        stated = int.from_bytes(header[12:], "little") if len(header) == HEADER else HEADER
        if stated != size:
            raise InputError(f"{file} has {size} bytes and not {stated}, it is cut short or damaged: download it again")
