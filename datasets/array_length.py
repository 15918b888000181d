"""The number of rows of a zarr array. zarr-python takes 2 ms to change it, most of the time of a small append."""

from __future__ import annotations

import json
from typing import Any

from vla.datasets.folder import Folder, reading


class ArrayLength:
    """The first dimension of an array's shape in its `zarr.json`. Raises InputError if that file is damaged."""

    def __init__(self, folder: Folder, name: str) -> None:
        self._folder, self._file = folder, f"{name}/zarr.json"
        with reading(f"{folder}/{name}"):
            self._metadata: dict[str, Any] = json.loads(bytes(folder.read(self._file)))
            self.value = int(self._metadata["shape"][0])

    def set(self, count: int) -> None:
        """Changes the number of rows. The chunks of removed rows stay: only zarr-python deletes chunks."""
        self._metadata["shape"][0] = self.value = count
        self._folder.write(self._file, json.dumps(self._metadata, indent=2).encode())
