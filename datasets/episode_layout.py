"""The frame range and the optional arrays of every episode of a store, as numbers that need no parsing.

The array `layout` (n, 2), int64, has one row per episode: the index after its last frame, and the index of its streams
in the group's attribute `stream_sets`. It is a cache: the JSON records are authoritative. If rows are missing (all of
them in stores from older versions) or disagree with the records, they are rebuilt from the records and written by the
next append.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import numpy as np
import zarr
from jaxtyping import Int

from vla.datasets.array_length import ArrayLength
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.folder import Folder
from vla.datasets.shards import Rows, create_rows
from vla.errors import InputError

LAYOUT, STREAM_SETS = "layout", "stream_sets"


class EpisodeLayout:
    """The layout of a store with `count` records, of which `last` is the last. The caller adds missing episodes."""

    def __init__(self, folder: Folder, group: zarr.Group, count: int, last: EpisodeRecord | None) -> None:
        self._folder, self._group = folder, group
        stored: Any = group.attrs.get(STREAM_SETS, [])
        self._sets: list[tuple[str, ...]] = [tuple(names) for names in stored]
        self._length: ArrayLength | None = None
        self._rows = self._stored(count)
        self._size = self._written = len(self._rows)
        if not self._matches_records(count, last):
            self.clear()

    def __len__(self) -> int:
        return self._size

    @property
    def ends(self) -> Int[np.ndarray, "n"]:
        """The index after the last frame of each episode."""
        return self._rows[: self._size, 0]

    @property
    def streams(self) -> set[str]:
        """The optional arrays that at least one episode has."""
        return {name for used in np.unique(self._rows[: self._size, 1]) for name in self._sets[used]}

    def frames(self, index: int) -> slice:
        """The frames of an episode in every array."""
        return slice(int(self._rows[index - 1, 0]) if index else 0, int(self._rows[index, 0]))

    def put(self, index: int, record: EpisodeRecord) -> None:
        """Sets the row of episode `index`, which becomes the last. Raises ValueError unless it follows the others."""
        if record.offset != (end := self.frames(index - 1).stop if index else 0):
            raise ValueError(f"episode {index} starts at frame {record.offset}, not {end}")
        if record.streams not in self._sets:
            self._sets.append(record.streams)
        if index == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros((max(64, index), 2), np.int64)])
        self._rows[index] = record.frames.stop, self._sets.index(record.streams)
        self._size, self._written = index + 1, min(self._written, index)

    def write(self) -> None:
        """Writes the rows that are not on disk yet."""
        if len(self._sets) > len(self._group.attrs.get(STREAM_SETS, [])):  # type: ignore[arg-type]
            self._group.update_attributes({STREAM_SETS: [list(names) for names in self._sets]})
        if self._length is None:
            create_layout(self._group)
            self._length = ArrayLength(self._folder, LAYOUT)
        self._length.set(self._size)
        stored = Rows(self._folder, LAYOUT, (2,), np.dtype("<i8"), self._written)
        stored.write(self._written, self._rows[self._written : self._size])
        self._written = self._size

    def trim(self, count: int) -> None:
        """Shortens the array to at most `count` episodes."""
        if self._length is not None and self._length.value > count:
            self._length.set(count)

    def clear(self) -> None:
        """Drops all rows because they disagree with the records."""
        self._size = self._written = 0

    def _stored(self, count: int) -> Int[np.ndarray, "m 2"]:
        """The rows of the committed episodes on disk, or none if they cannot be read."""
        rows = np.zeros((0, 2), np.int64)
        with suppress(InputError):
            if self._folder.exists(f"{LAYOUT}/zarr.json"):
                self._length = ArrayLength(self._folder, LAYOUT)
                stored = Rows(self._folder, LAYOUT, (2,), np.dtype("<i8"), min(self._length.value, count))
                rows = stored[:].copy()
        # One extra row is the remainder of an append that was interrupted before it wrote its record.
        if self._length and self._length.value > count + 1:
            raise OSError(f"{self._length.value} episodes were committed, but only {count} records exist")
        return rows

    def _matches_records(self, count: int, last: EpisodeRecord | None) -> bool:
        ends, sets = self._rows.T
        if (np.diff(ends, prepend=0) <= 0).any() or ((sets < 0) | (sets >= len(self._sets))).any():
            return False
        if last is None or self._size < count:
            return True
        return self.frames(count - 1) == last.frames and self._sets[sets[-1]] == last.streams


def create_layout(group: zarr.Group) -> None:
    """Creates an empty layout."""
    create_rows(group, LAYOUT, (2,), np.dtype("<i8"))
