"""Reader of episode stores of schema 1, without codecs, depth and other streams, for their conversion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from vla.datasets.episode_index import checksum
from vla.datasets.folder import array, reading
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

VERSION = 1


class OldStoreSource:
    """An `EpisodeSource` over a store of schema 1. Raises InputError if it is damaged."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with reading(f"{path}/zarr.json"):
            self._group = zarr.open_group(path, mode="r", zarr_format=3)
            self._embodiment = Embodiment.from_dict(self._group.attrs["embodiment"])  # type: ignore[arg-type]
        with reading(f"{path}/episodes"):
            texts = [str(text) for text in np.asarray(array(self._group, "episodes")[:])]
            self._records: list[dict[str, Any]] = [json.loads(text) for text in texts if text]

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment that all episodes share."""
        return self._embodiment

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The format, its version, and the name of the folder."""
        return {"format": "vla", "version": VERSION, "name": self._path.name}

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError if its data do not match its checksum."""
        record = self._records[index]
        optional = [name for name in ("points", "chunks") if record.get(f"has_{name}")]
        names = [*(f"images/{camera}" for camera in self._embodiment.cameras), "state", "action", "time", *optional]
        rows = slice(record["offset"], record["offset"] + record["length"])
        with reading(f"episode {index} of {self._path}"):
            arrays = {name: np.asarray(array(self._group, name)[rows]) for name in names}
        if checksum(arrays.values()) != record["checksum"]:
            raise InputError(f"episode {index} of {self._path} does not match its checksum: restore it from a copy")
        return Episode(
            images={camera: arrays[f"images/{camera}"] for camera in self._embodiment.cameras},
            instruction=record["instruction"],
            embodiment=self._embodiment,
            success=record["success"],
            info=record["info"],
            state=arrays["state"],
            action=arrays["action"],
            time=arrays["time"],
            points=arrays.get("points"),
            chunks=arrays.get("chunks"),
        )
