"""The episode store: demonstrations, rollouts and real runs in one zarr v3 folder.

| array             | shape        | content                                                            |
|-------------------|--------------|--------------------------------------------------------------------|
| images/<camera>   | (N, h, w, 3) | uint8 frames of all episodes, one after another                    |
| state, action     | (N, s), (N, a) | float64, in the embodiment's units                               |
| time              | (N,)         | capture time [s]                                                   |
| points            | (N, p, 2)    | where the named things are in the images, NaN where unknown (only if recorded) |
| chunks            | (N, h, a)    | the policy's chunk in force, NaN where none (only if one was recorded) |
| episodes          | (E,)         | one JSON text an episode: `EpisodeRecord`                          |

The group's attributes hold the format, the schema version and the embodiment. Stock zarr reads everything.

An episode exists once its record is in `episodes`: that one-file rename is the last write of an append.
Frames beyond the last record are leftovers of a writer that was killed, and the next append overwrites
them. One process writes (an flock on the folder); readers see the episodes there when they opened.
"""

from __future__ import annotations

import os
import shutil
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import zarr
from jaxtyping import Float, Int, UInt8

from vla.datasets.episode_checks import check_episode
from vla.datasets.episode_index import EpisodeRecord, checksum, read_records
from vla.datasets.shards import ShardReader, create_image_array, write_frames
from vla.datasets.statistics import Statistics, check_finite
from vla.datasets.store_folder import array, lock_folder, reading
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

FORMAT = "vla.episodes"
SCHEMA_VERSION = 1
ROWS_PER_CHUNK = 4096
RECORDS_PER_CHUNK = 256


@dataclass(frozen=True)
class StoreSummary:
    """What a person wants to know of a store at a glance; `images` maps each camera to (height, width)."""

    path: str
    embodiment: str
    episodes: int
    frames: int
    seconds: float
    successes: int
    instructions: Mapping[str, int]
    images: Mapping[str, tuple[int, int]]


class EpisodeStore:
    """A sequence of episodes on disk. Made by `create` or `open`; use it as a context manager to write."""

    def __init__(self, path: Path, group: zarr.Group, lock: int | None) -> None:
        self.path = path
        self._group = group
        self._release = None if lock is None else weakref.finalize(self, os.close, lock)
        with reading(path / "zarr.json"):
            self.embodiment = Embodiment.from_dict(group.attrs["embodiment"])  # type: ignore[arg-type]
        with reading(path / "episodes"):
            self.records = read_records(array(group, "episodes"))
        for name in self._streams():
            with reading(path / name):
                rows = array(group, name).shape[0]
            if rows < self.total_frames:
                raise InputError(
                    f"{path / name} holds {rows} of {self.total_frames} frames: the store is damaged, restore it"
                )

    @classmethod
    def create(cls, path: str | Path, embodiment: Embodiment) -> EpisodeStore:
        """An empty store at `path`, open for appending. Raises InputError when something is there already."""
        path = Path(path)
        if path.is_file() or (path.is_dir() and any(path.iterdir())):
            raise InputError(f"{path} exists: choose another folder, or remove it first")
        path.parent.mkdir(parents=True, exist_ok=True)
        # The folder appears complete or not at all.
        unfinished = path.with_name(f".{path.name}.partial")
        attributes = {"format": FORMAT, "schema_version": SCHEMA_VERSION, "embodiment": embodiment.to_dict()}
        group = zarr.create_group(unfinished, attributes=attributes, overwrite=True)
        for name, width in (("state", len(embodiment.state)), ("action", len(embodiment.action)), ("time", None)):
            _create_rows(group, name, () if width is None else (width,))
        group.create_array("episodes", shape=(0,), chunks=(RECORDS_PER_CHUNK,), dtype=str)
        try:
            unfinished.rename(path)
        except OSError as error:
            shutil.rmtree(unfinished)
            raise InputError(f"cannot create {path}: {error.strerror}") from error
        return cls.open(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r") -> EpisodeStore:
        """The store at `path`, to read or to append too.

        Raises InputError when it is missing, is no episode store, is damaged, was written by a newer
        version, or (to append) is being written by another process.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"no episode store at {path}: record one first (vla record)")
        if not (path / "zarr.json").is_file():
            raise InputError(f"{path} is not an episode store: it has no zarr.json")
        with reading(path / "zarr.json"):
            group = zarr.open_group(path, mode="r" if mode == "r" else "r+", zarr_format=3)
            attributes = dict(group.attrs)
        if attributes.get("format") != FORMAT:
            raise InputError(f"{path} is a zarr group but not an episode store: its format is not {FORMAT!r}")
        if attributes.get("schema_version") != SCHEMA_VERSION:
            raise InputError(
                f"{path} has schema version {attributes.get('schema_version')}, this program reads {SCHEMA_VERSION}"
            )
        return cls(path, group, None if mode == "r" else lock_folder(path))

    def close(self) -> None:
        """Lets another process write. Reading still works."""
        if self._release is not None:
            self._release()

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError when its data do not match its checksum."""
        record = self.records[index]
        arrays = {name: self._rows(name)[record.frames].copy() for name in ("state", "action", "time")}
        where = np.arange(record.offset, record.offset + record.length)
        episode = Episode(
            images={camera: self.frames(camera, where) for camera in self.embodiment.cameras},
            instruction=record.instruction,
            embodiment=self.embodiment,
            success=record.success,
            info=record.info,
            points=self._rows("points")[record.frames].copy() if record.has_points else None,
            chunks=self._rows("chunks")[record.frames].copy() if record.has_chunks else None,
            **arrays,
        )
        if checksum(_arrays(episode)) != record.checksum:
            raise InputError(f"episode {index} of {self.path} does not match its checksum: restore it from a copy")
        return episode

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    @property
    def total_frames(self) -> int:
        return self.records[-1].frames.stop if self.records else 0

    @property
    def state(self) -> Float[np.ndarray, "n s"]:
        """States of all frames; held in memory, not to be written."""
        return self._rows("state")

    @property
    def action(self) -> Float[np.ndarray, "n a"]:
        """Actions of all frames; held in memory, not to be written."""
        return self._rows("action")

    @property
    def points(self) -> Float[np.ndarray, "n p 2"] | None:
        """Points of all frames, NaN where unknown; None when no episode has any. Not to be written."""
        return self._rows("points") if "points" in self._streams() else None

    def frames(self, camera: str, indices: Int[np.ndarray, "n"] | Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        """Frames of `camera` at `indices`, counted over all episodes."""
        if camera not in self.embodiment.cameras:
            raise InputError(f"{self.path} has no camera {camera!r}: it has {', '.join(self.embodiment.cameras)}")
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.total_frames):
            raise IndexError(f"frames {indices.min()} to {indices.max()} of {self.total_frames}")
        return self._readers[camera].read(indices)

    @property
    def summary(self) -> StoreSummary:
        return StoreSummary(
            path=str(self.path),
            embodiment=self.embodiment.name,
            episodes=len(self),
            frames=self.total_frames,
            seconds=self.total_frames / self.embodiment.control_hz,
            successes=sum(record.success for record in self.records),
            instructions=Counter(record.instruction for record in self.records),
            images=self._image_sizes,
        )

    def statistics(self, episodes: Sequence[int] | None = None) -> dict[Literal["state", "action"], Statistics]:
        """Statistics of `state` and `action` over `episodes` (default: all); decodes no image.

        Raises InputError naming episode, step and component where a value is not finite.
        """
        chosen = range(len(self)) if episodes is None else episodes
        kept: dict[Literal["state", "action"], list[np.ndarray]] = {"state": [], "action": []}
        for name, parts in kept.items():
            for index in chosen:
                parts.append(self._rows(name)[self.records[index].frames])
                check_finite(parts[-1], getattr(self.embodiment, name), f"{name} of episode {index} of {self.path}")
        if not chosen:
            raise InputError(f"{self.path} has no episodes to compute statistics of: record some first")
        return {name: Statistics.of(np.concatenate(parts)) for name, parts in kept.items()}

    def append(self, episode: Episode) -> None:
        """Adds `episode`; it is visible, whole, when this returns.

        Raises InputError before anything is written when the episode does not fit the store, is empty or
        inconsistent, or holds a value that is not finite.
        """
        self._check_writable()
        check_episode(episode, self.embodiment, self._image_sizes, self._width("points"), self._width("chunks"))
        arrays, start, stop = _arrays(episode), self.total_frames, self.total_frames + len(episode)
        record = EpisodeRecord(
            offset=start,
            length=len(episode),
            instruction=episode.instruction,
            success=bool(episode.success),
            info=dict(episode.info),
            has_points=episode.points is not None,
            has_chunks=episode.chunks is not None,
            checksum=checksum(arrays),
        )
        text = record.to_json()
        self._create_missing(arrays)
        for name in self._streams() | arrays.keys():
            stream = array(self._group, name)
            stream.resize((stop, *stream.shape[1:]))
            if name.startswith("images/"):
                write_frames(self.path / name, start, arrays[name])
            else:
                # An episode without points or chunks in a store that has them gets NaN rows.
                stream[start:stop] = arrays.get(name, np.nan)
        index = array(self._group, "episodes")
        index.resize((len(self) + 1,))
        index[len(self)] = text
        self._forget()
        self.records = (*self.records, record)

    def _check_writable(self) -> None:
        if self._release is None or not self._release.alive:
            raise InputError(f"{self.path} is not open for writing: open it with mode 'a'")

    @property
    def unfinished_frames(self) -> int:
        """Steps beyond the last episode, left by a writer that was killed; the next append overwrites them."""
        return max(array(self._group, name).shape[0] for name in self._streams()) - self.total_frames

    def trim(self) -> int:
        """Removes the steps beyond the last episode, and says how many those were."""
        self._check_writable()
        left = self.unfinished_frames
        for name in self._streams():
            stream = array(self._group, name)
            stream.resize((self.total_frames, *stream.shape[1:]))
        self._forget()
        return left

    def _streams(self) -> set[str]:
        """Names of the arrays that hold the committed frames."""
        images = {f"images/{camera}" for camera in self.embodiment.cameras} if self.records else set()
        points = {"points"} if any(record.has_points for record in self.records) else set()
        chunks = {"chunks"} if any(record.has_chunks for record in self.records) else set()
        return {"state", "action", "time"} | images | points | chunks

    @property
    def _image_sizes(self) -> dict[str, tuple[int, int]]:
        return {camera: reader.frame_shape[:2] for camera, reader in self._readers.items()}

    def _width(self, name: str) -> int | None:
        """Points or chunked actions a step; None while there is no such stream."""
        return array(self._group, name).shape[1] if name in self._streams() else None

    def _create_missing(self, arrays: Mapping[str, np.ndarray]) -> None:
        # What a killed writer left behind is not among the streams, and is replaced: its shape may differ.
        for name in arrays.keys() - self._streams():
            if name in ("points", "chunks"):
                _create_rows(self._group, name, arrays[name].shape[1:])
            else:
                create_image_array(self._group, name, *arrays[name].shape[1:3])

    def _forget(self) -> None:
        """Drops what was read: the arrays have grown."""
        self._columns.clear()
        self.__dict__.pop("_readers", None)

    @cached_property
    def _columns(self) -> dict[str, np.ndarray]:
        return {}

    def _rows(self, name: str) -> np.ndarray:
        if name not in self._columns:
            with reading(self.path / name):
                self._columns[name] = np.asarray(array(self._group, name)[: self.total_frames])
        return self._columns[name]

    @cached_property
    def _readers(self) -> dict[str, ShardReader]:
        cameras = self.embodiment.cameras if self.records else ()
        shapes = {camera: array(self._group, f"images/{camera}").shape for camera in cameras}
        return {name: ShardReader(self.path / "images" / name, *shape[1:3]) for name, shape in shapes.items()}


def _arrays(episode: Episode) -> dict[str, np.ndarray]:
    """The episode's arrays by their names in the store, in the stored dtypes."""
    images = {f"images/{camera}": episode.images[camera] for camera in episode.embodiment.cameras}
    rows = {name: np.asarray(getattr(episode, name), np.float64) for name in ("state", "action", "time")}
    optional = {name: getattr(episode, name) for name in ("points", "chunks")}
    return images | rows | {name: np.asarray(v, np.float64) for name, v in optional.items() if v is not None}


def _create_rows(group: zarr.Group, name: str, row: tuple[int, ...]) -> None:
    group.create_array(
        name, shape=(0, *row), chunks=(ROWS_PER_CHUNK, *row), dtype="float64", fill_value=np.nan, overwrite=True
    )
