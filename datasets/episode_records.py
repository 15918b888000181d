"""The records of a store's episodes, read on demand: reading a million of them takes 0.7 GB and 9 s."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import SupportsIndex, overload

import numpy as np
import zarr
from jaxtyping import Int

from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.episode_layout import EpisodeLayout
from vla.datasets.folder import Folder, reading
from vla.datasets.text_chunks import TEXTS_PER_CHUNK, TextChunks, create_texts

HELD_CHUNKS, HELD_RECORDS = 16, 4096
"""Cache sizes. As many records are cached as there are episodes that training shuffles together."""


class EpisodeRecords(Sequence[EpisodeRecord]):
    """The committed records. Raises InputError if they are damaged, on opening or on reading a record."""

    def __init__(self, folder: Folder, group: zarr.Group) -> None:
        self._folder, self._group = folder, group
        self._name = str(group.attrs["index"])
        self._chunk = lru_cache(HELD_CHUNKS)(self._read)
        self._record = lru_cache(HELD_RECORDS)(self._parsed)
        with reading(f"{folder}/{self._name}"):
            self._texts = TextChunks(folder, group, self._name)
            self._count, self._last = self._committed()
            last = EpisodeRecord.from_json(self._last[-1]) if self._last else None
            self._layout = EpisodeLayout(folder, group, self._count, last)
            try:
                self._complete_layout()
            except ValueError:  # for example, an older version without layout appended after an interrupted append
                self._layout.clear()
                self._complete_layout()
        self.streams: set[str] = self._layout.streams
        """The optional arrays that at least one episode has."""

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: SupportsIndex) -> EpisodeRecord: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[EpisodeRecord]: ...

    def __getitem__(self, index: SupportsIndex | slice) -> EpisodeRecord | Sequence[EpisodeRecord]:
        try:
            selected = range(len(self))[index]
        except IndexError:
            raise IndexError(f"there is no episode {index}: the store has {len(self)}") from None
        return self._record(selected) if isinstance(selected, int) else tuple(self._record(i) for i in selected)

    def __iter__(self) -> Iterator[EpisodeRecord]:
        return self.holding("")

    def holding(self, text: str) -> Iterator[EpisodeRecord]:
        """The records whose JSON contains `text`. Other records are not parsed, which saves most of the time."""
        for first in range(0, len(self), TEXTS_PER_CHUNK):
            for offset, record in enumerate(self._read(first // TEXTS_PER_CHUNK, text)):
                if text in record:
                    yield self._parsed(first + offset, record)

    @property
    def ends(self) -> Int[np.ndarray, "n"]:
        """The index after the last frame of each episode."""
        return self._layout.ends[: len(self)]

    def frames(self, index: SupportsIndex) -> slice:
        """The frames of episode `index` in every array."""
        return self._layout.frames(range(len(self))[index])

    def append(self, record: EpisodeRecord) -> None:
        """Commits an episode. The file of its record is written last."""
        self._layout.put(self._count, record)
        self._layout.write()
        texts = [*(self._last if len(self._last) < TEXTS_PER_CHUNK else ()), record.to_json()]
        self._texts.resize(self._count + 1)
        self._texts.write(self._count // TEXTS_PER_CHUNK, texts)
        self._count, self._last = self._count + 1, texts
        self.streams |= set(record.streams)
        self._chunk.cache_clear()

    def replace(self, changed: Mapping[int, EpisodeRecord]) -> None:
        """Replaces records by others with the same frames and streams. On any failure, none is replaced."""
        texts = {range(len(self))[index]: record.to_json() for index, record in changed.items()}
        old, new = self._name, f"episodes-{int(self._name.partition('-')[2] or 0) + 1}"
        create_texts(self._group, new)
        rewritten, last = TextChunks(self._folder, self._group, new), self._last
        rewritten.resize(len(self))
        for first in range(0, len(self), TEXTS_PER_CHUNK):
            stored = self._read(first // TEXTS_PER_CHUNK)
            last = [texts.get(first + offset, text) for offset, text in enumerate(stored)]
            rewritten.write(first // TEXTS_PER_CHUNK, last)
        self._group.update_attributes({"index": new})
        self._name, self._texts, self._last = new, rewritten, last
        self._chunk.cache_clear()
        self._record.cache_clear()
        self._folder.remove(old)

    def trim(self) -> None:
        """Shortens the arrays to the number of episodes: an interrupted append may have made them longer."""
        self._texts.resize(len(self))
        self._layout.trim(len(self))

    def _committed(self) -> tuple[int, list[str]]:
        """The number of records, and the texts of the last chunk."""
        room = len(self._texts)
        while room:
            chunk = (room - 1) // TEXTS_PER_CHUNK
            texts: list[str] = []
            with suppress(FileNotFoundError):  # an append that was interrupted before its commit
                texts = self._texts.read(chunk)[: room - chunk * TEXTS_PER_CHUNK]
            while texts and not texts[-1]:
                texts.pop()
            if texts:
                return chunk * TEXTS_PER_CHUNK + len(texts), texts
            room = chunk * TEXTS_PER_CHUNK
        return 0, []

    def _complete_layout(self) -> None:
        length = len(self._layout)
        for chunk in range(length // TEXTS_PER_CHUNK, -(-self._count // TEXTS_PER_CHUNK)):
            first = chunk * TEXTS_PER_CHUNK
            for index, text in enumerate(self._read(chunk), first):
                if index >= length:
                    self._layout.put(index, EpisodeRecord.from_json(text))

    def _read(self, chunk: int, containing: str = "") -> list[str]:
        """The committed texts of a chunk, or an empty list if none contains `containing`."""
        with reading(f"{self._folder}/{self._name}"):
            try:
                texts = self._texts.read(chunk, containing)
            except FileNotFoundError:
                # Another process may have replaced the records since the store was opened.
                name = json.loads(bytes(self._folder.read("zarr.json")))["attributes"]["index"]
                if name == self._name:
                    raise
                self._name, self._texts = name, TextChunks(self._folder, self._group, name)
                texts = self._texts.read(chunk, containing)
        return texts[: self._count - chunk * TEXTS_PER_CHUNK]

    def _parsed(self, index: int, text: str | None = None) -> EpisodeRecord:
        with reading(f"episode {index} of {self._folder}/{self._name}"):
            if text is None:
                text = self._chunk(index // TEXTS_PER_CHUNK)[index % TEXTS_PER_CHUNK]
            record = EpisodeRecord.from_json(text)
            if record.frames != self.frames(index) or not self.streams.issuperset(record.streams):
                raise ValueError("its record disagrees with layout: remove layout, and it is rebuilt")
        return record
