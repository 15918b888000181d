"""A zarr array of texts, read and written one chunk at a time: each call into zarr-python costs 1-3 ms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8
from numcodecs.zstd import compress, decompress

from vla.datasets.array_length import ArrayLength
from vla.datasets.folder import Folder, array

TEXTS_PER_CHUNK = 256
_COUNT_BYTES = 4
_CODEC = VLenUTF8()


class TextChunks:
    """The chunks of array `name`: files of `TEXTS_PER_CHUNK` texts. Entries after the last text are empty.

    Raises ValueError, OSError, KeyError or TypeError if the array is damaged.
    """

    def __init__(self, folder: Folder, group: zarr.Group, name: str) -> None:
        self.folder, self.name = folder, name
        if (chunks := array(group, name).chunks) != (TEXTS_PER_CHUNK,):
            raise ValueError(f"{name} has chunks of {chunks} texts, not of {TEXTS_PER_CHUNK}")
        self._length = ArrayLength(folder, name)

    def __len__(self) -> int:
        """The allocated number of texts. After an interrupted append it exceeds the number of written texts."""
        return self._length.value

    def raw(self, chunk: int) -> bytes:
        """The texts of a chunk in UTF-8, each preceded by its length. Raises FileNotFoundError."""
        stored = self.folder.read(f"{self.name}/c/{chunk}")
        try:
            content = decompress(stored)
        except (RuntimeError, MemoryError) as error:
            raise ValueError(f"chunk {chunk}: {error}") from error
        # The codec allocates memory by this count before it validates the rest.
        if int.from_bytes(content[:_COUNT_BYTES], "little") != TEXTS_PER_CHUNK:
            raise ValueError(f"chunk {chunk} does not hold {TEXTS_PER_CHUNK} texts")
        return content

    def read(self, chunk: int, containing: str = "") -> list[str]:
        """The texts of a chunk, or an empty list if none contains `containing`. Raises FileNotFoundError."""
        raw = self.raw(chunk)
        return [str(text) for text in _CODEC.decode(raw)] if containing.encode() in raw else []

    def write(self, chunk: int, texts: Sequence[str]) -> None:
        """Replaces the chunk."""
        filled = np.array([*texts, *[""] * (TEXTS_PER_CHUNK - len(texts))], object)
        self.folder.write(f"{self.name}/c/{chunk}", compress(_CODEC.encode(filled), 0))

    def resize(self, count: int) -> None:
        """Sets the allocated number of texts."""
        self._length.set(count)


def create_texts(group: zarr.Group, name: str) -> None:
    """Creates an empty array for `TextChunks`."""
    group.create_array(name, shape=(0,), chunks=(TEXTS_PER_CHUNK,), dtype=str, overwrite=True)
