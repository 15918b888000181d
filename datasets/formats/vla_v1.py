"""Episode stores of schema version 1, whose rows were not sharded: the way from there is `vla convert OLD NEW.zarr`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from vla.datasets.codecs import codec
from vla.datasets.episode_index import checksum
from vla.datasets.folder import array, open_folder, reading
from vla.datasets.shards import Frames
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode


def detect(path: Path) -> bool:
    try:
        attributes = json.loads((path / "zarr.json").read_text())["attributes"]
    except (OSError, ValueError, KeyError):
        return False
    return (attributes.get("format"), attributes.get("schema_version")) == ("vla.episodes", 1)


def open_source(path: Path) -> StoreV1:
    """Raises InputError when the store is damaged."""
    if not detect(path):
        raise InputError(f"{path} is not an episode store of schema version 1")
    return StoreV1(path)


class StoreV1:
    """The episodes, each checked against its checksum."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._folder = open_folder(path)
        with reading(path):
            self._group = zarr.open_group(path, mode="r", zarr_format=3)
            self.embodiment = Embodiment.from_dict(self._group.attrs["embodiment"])  # type: ignore[arg-type]
            texts = [str(text) for text in np.asarray(array(self._group, "episodes")[:])]
            self._records: list[dict[str, Any]] = [json.loads(text) for text in texts if text]
        self._rows: dict[str, np.ndarray] = {}

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"format": "vla", "schema_version": 1, "name": self.path.name}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Episode:
        record = self._records[index]
        start, stop = record["offset"], record["offset"] + record["length"]
        cameras = self.embodiment.cameras
        # In the order of the checksum.
        arrays: dict[str, Any] = {
            f"images/{camera}": self._images(camera, start, stop) for camera in self.embodiment.cameras
        }
        names = ["state", "action", "time", *(n for n in ("points", "chunks") if record.get(f"has_{n}"))]
        arrays |= {name: self._all_rows(name)[start:stop] for name in names}
        if checksum(arrays.values()) != record["checksum"]:
            raise InputError(f"episode {index} of {self.path} does not match its checksum: restore it from a copy")
        return Episode(
            images={camera: arrays.pop(f"images/{camera}") for camera in cameras},
            instruction=record["instruction"],
            embodiment=self.embodiment,
            success=record["success"],
            info=record["info"],
            **arrays,
        )

    def _images(self, camera: str, start: int, stop: int) -> np.ndarray:
        name = f"images/{camera}"
        with reading(self.path / name):
            found = array(self._group, name)
        return Frames(self._folder, name, found.shape[1:], found.dtype, codec("zstd")).read(np.arange(start, stop))

    def _all_rows(self, name: str) -> np.ndarray:
        if name not in self._rows:
            with reading(self.path / name):
                self._rows[name] = np.asarray(array(self._group, name)[:])
        return self._rows[name]
