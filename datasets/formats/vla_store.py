"""An episode store as a source, to convert it to another codec, to the current schema, or to LeRobot."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.datasets.episode_source import EpisodeSource
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.vla_store_v1 import VERSION, OldStoreSource
from vla.datasets.source_files import read_json_object
from vla.datasets.store_arrays import names_under
from vla.datasets.store_schema import FORMAT
from vla.embodiment import Embodiment
from vla.types import Episode


def detect(path: Path) -> bool:
    """Whether there is an episode store at `path`."""
    return _attributes(path).get("format") == FORMAT


def open_source(path: Path | str) -> EpisodeSource:
    """The store at `path`, a folder or an address. Raises InputError if there is none, or it is damaged."""
    if isinstance(path, Path) and detect(path) and _attributes(path).get("schema_version") == VERSION:
        return OldStoreSource(path)
    return StoreSource(EpisodeStore.open(path))


def _attributes(path: Path) -> dict[str, Any]:
    """The attributes of the zarr group at `path`; empty if there is none. Raises InputError if its JSON is damaged."""
    file = path / "zarr.json"
    attributes = read_json_object(file).get("attributes") if file.is_file() else None
    return attributes if isinstance(attributes, dict) else {}


class StoreSource:
    """An `EpisodeSource` over a store. The provenance of its data is kept."""

    def __init__(self, store: EpisodeStore) -> None:
        self._store = store

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment of the store."""
        return self._store.embodiment

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The provenance of the store, with `regular_time` computed anew: the times may have changed."""
        provenance = dict(self._store.provenance) or {"format": "vla", "name": Path(self._store.path).name}
        # The embodiment states the action modes, except in stores from older versions.
        stated = (provenance.get("actions_stated") or "in the store") if self._store.declares_actions else ""
        return {**provenance, "actions_stated": stated, "regular_time": self._has_regular_time()}

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Episode:
        return self._store[index]

    def numbers(self, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of episode `index`."""
        frames = self._store.records[index].frames
        return self._store.state[frames], self._store.action[frames]

    def example(self, indices: range) -> Episode:
        """The first of the episodes, with zeros for optional streams that only the others have."""
        first = self._store[indices.start]
        depth, extras = dict(first.depth), dict(first.extras)
        optional = {"points": first.points, "chunks": first.chunks}
        for index in indices:
            streams = self._store.records[index].streams
            for name in names_under("depth", streams):
                if name not in depth:
                    shape = self._store.depth(name, [self._store.records[index].offset]).shape
                    depth[name] = np.zeros((len(first), *shape[1:]), np.uint16)
            for name in names_under("extras", streams):
                if name not in extras:
                    extras[name] = self._blank(f"extras/{name}", len(first))
            for name in optional.keys() & set(streams):
                if optional[name] is None:
                    optional[name] = self._blank(name, len(first))
        return replace(first, depth=depth, extras=extras, points=optional["points"], chunks=optional["chunks"])

    def _blank(self, name: str, steps: int) -> np.ndarray:
        rows = self._store.rows(name)[0:1]
        return np.zeros((steps, *rows.shape[1:]), rows.dtype)

    def _has_regular_time(self) -> bool:
        rate = self._store.embodiment.control_hz
        grids = [(np.arange(record.length) / rate).astype(np.float32) for record in self._store.records]
        return all(
            np.array_equal(self._store.time[record.frames], grid)
            for record, grid in zip(self._store.records, grids, strict=True)
        )
