"""Numbers of an episode in progress, in memory that does not grow with it."""

from __future__ import annotations

import weakref
from array import array
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, SupportsFloat

import numpy as np
from jaxtyping import Float

HELD = 8192
"""Numbers in memory, before they go to the file."""


class SpilledNumbers:
    """A list of floats, to add to. All but the last few are in a nameless file in `folder`; None: in memory."""

    def __init__(self, folder: Path | None) -> None:
        self._folder, self._count = folder, 0
        self._held: array[float] = array("d")
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._count

    def extend(self, values: Iterable[SupportsFloat]) -> None:
        """Raises OSError where the disk is full."""
        before = len(self._held)
        self._held.extend(map(float, values))
        self._count += len(self._held) - before
        if self._folder is not None and len(self._held) >= HELD:
            self._spill(self._folder)

    def read(self) -> Float[np.ndarray, "n"]:
        """All of them."""
        numbers = np.empty(self._count)
        spilled = self._count - len(self._held)
        if self._file is not None:
            self._file.seek(0)
            self._file.readinto(memoryview(numbers[:spilled]).cast("B"))  # type: ignore[attr-defined]
        numbers[spilled:] = self._held
        return numbers

    def _spill(self, folder: Path) -> None:
        if self._file is None:
            self._file = TemporaryFile(dir=folder)  # noqa: SIM115
            weakref.finalize(self, self._file.close)
        self._file.seek(0, 2)
        self._file.write(self._held)
        # What does not fit on the disk is to be known now.
        self._file.flush()
        del self._held[:]
