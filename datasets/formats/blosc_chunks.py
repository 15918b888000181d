"""Checks the files of zarr chunks that are compressed by Blosc for truncation.

Blosc decompresses a truncated chunk without an error, from arbitrary memory after it. Its header states its length in
bytes 12 to 16, little-endian.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

from vla.errors import InputError

if TYPE_CHECKING:
    import zarr

HEADER = 16
"""Bytes of a chunk's header."""


def check_chunks(array: zarr.Array, folder: Path, start: int, stop: int) -> None:
    """Checks the chunks of the rows `start` to before `stop`. `folder` is the array's folder.

    Missing chunks and other compressors are not checked. Raises InputError that names a file of a wrong size.
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
