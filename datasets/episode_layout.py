"""Where every episode of a store lies, and which arrays it has: numbers, where the records are texts to be parsed.

The array `layout` (n, 2), int64, has a row for each episode: the frame behind its last one, and the place of its
streams in the group's attribute `stream_sets`. The records are what counts. What a layout lacks (that of a store from
before there was one, all of it), or where it disagrees with the records, is taken from them, and written by the next
append.
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
    """The layout of a store whose last record, of `count`, is `last`. Episodes that it lacks are put there."""

    def __init__(self, folder: Folder, group: zarr.Group, count: int, last: EpisodeRecord | None) -> None:
        self._folder, self._group = folder, group
        stored: Any = group.attrs.get(STREAM_SETS, [])
        self._sets: list[tuple[str, ...]] = [tuple(names) for names in stored]
        self._length: ArrayLength | None = None
        self._rows = self._stored(count)
        self._size = self._written = len(self._rows)
        if not self._holds(count, last):
            self.clear()

    def __len__(self) -> int:
        return self._size

    @property
    def ends(self) -> Int[np.ndarray, "n"]:
        """The frame behind the last of each episode."""
        return self._rows[: self._size, 0]

    @property
    def streams(self) -> set[str]:
        """The arrays that any episode has beyond the usual ones."""
        return {name for used in np.unique(self._rows[: self._size, 1]) for name in self._sets[used]}

    def frames(self, index: int) -> slice:
        """The frames of an episode in every array."""
        return slice(int(self._rows[index - 1, 0]) if index else 0, int(self._rows[index, 0]))

    def put(self, index: int, record: EpisodeRecord) -> None:
        """Says where episode `index`, the last from now on, lies. Raises ValueError unless it is behind the others."""
        if record.offset != (end := self.frames(index - 1).stop if index else 0):
            raise ValueError(f"episode {index} starts at frame {record.offset}, not {end}")
        if record.streams not in self._sets:
            self._sets.append(record.streams)
        if index == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros((max(64, index), 2), np.int64)])
        self._rows[index] = record.frames.stop, self._sets.index(record.streams)
        self._size, self._written = index + 1, min(self._written, index)

    def write(self) -> None:
        """Writes what the array lacks."""
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
        """Makes the array no longer than `count` episodes."""
        if self._length is not None and self._length.value > count:
            self._length.set(count)

    def clear(self) -> None:
        """Forgets all of it: the records say otherwise."""
        self._size = self._written = 0

    def _stored(self, count: int) -> Int[np.ndarray, "m 2"]:
        """The rows on disk, of the committed episodes alone; none where they cannot be read."""
        rows = np.zeros((0, 2), np.int64)
        with suppress(InputError):
            if self._folder.exists(f"{LAYOUT}/zarr.json"):
                self._length = ArrayLength(self._folder, LAYOUT)
                stored = Rows(self._folder, LAYOUT, (2,), np.dtype("<i8"), min(self._length.value, count))
                rows = stored[:].copy()
        # One more is of an append that was cut off before its record.
        if self._length and self._length.value > count + 1:
            raise OSError(f"{self._length.value} episodes were committed, and only {count} records are there")
        return rows

    def _holds(self, count: int, last: EpisodeRecord | None) -> bool:
        ends, sets = self._rows.T
        if (np.diff(ends, prepend=0) <= 0).any() or ((sets < 0) | (sets >= len(self._sets))).any():
            return False
        if last is None or self._size < count:
            return True
        return self.frames(count - 1) == last.frames and self._sets[sets[-1]] == last.streams


def create_layout(group: zarr.Group) -> None:
    """An empty layout."""
    create_rows(group, LAYOUT, (2,), np.dtype("<i8"))
