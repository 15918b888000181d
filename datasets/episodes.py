"""The episode store: demonstrations, rollouts and real runs in one zarr v3 folder, local or in an object store.

| array             | a row        | content                                                            |
|-------------------|--------------|--------------------------------------------------------------------|
| images/<camera>   | (h, w, 3)    | uint8 frames of all episodes, concatenated, in the store's codec   |
| state, action     | (s,), (a,)   | float64, in the embodiment's units                                 |
| time              | ()           | capture time [s]                                                   |
| points            | (p, 2)       | positions of named objects in the images, NaN where unknown        |
| chunks            | (h, a)       | the action chunk in execution, NaN where none                      |
| depth/<camera>    | (h, w)       | uint16 [mm], 0 where unknown                                       |
| extras/<name>     | any          | any other numbers                                                  |
| layout            | (2,)         | int64: where an episode ends, which arrays it has: `EpisodeLayout` |
| episodes          | ()           | one JSON text an episode: `EpisodeRecord`                          |

The arrays between `time` and `layout` are optional: they exist once an episode has them. The group's attributes hold
the format, the schema version, the embodiment, the codec, the provenance and the name of the index. Stock zarr reads
all arrays.

An episode exists once its record is in the index: this replacement of one file is the last write of an append. An edit
writes a new index and then sets its name in the attributes. Frames after the last record are leftovers of a killed
writer; the next append overwrites them. Only one process writes. Readers see the episodes that existed when they
opened the store. Records are read on demand: opening reads only 16 bytes per episode.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, SupportsIndex

import numpy as np
import zarr
from jaxtyping import Int, UInt8, UInt16

from vla.common.statistics import Statistics
from vla.common.stored_image import StoredImage
from vla.datasets.codecs import DEFAULT
from vla.datasets.episode_checks import check_episode, check_names
from vla.datasets.episode_index import EDITABLE, EpisodeRecord, StoreSummary, checksum
from vla.datasets.episode_records import EpisodeRecords
from vla.datasets.folder import Folder, reading
from vla.datasets.frame_stream import FrameStream
from vla.datasets.image_stream import ImageStream
from vla.datasets.open_folder import open_folder
from vla.datasets.shards import Rows
from vla.datasets.store_arrays import ALWAYS, PADDED, Content, Shape, StoreArrays, by_name, is_rows, names_under, padded
from vla.datasets.store_schema import create_group, open_group
from vla.datasets.store_statistics import statistics_of
from vla.embodiment import Embodiment, declares_actions
from vla.errors import InputError
from vla.types import Episode


class EpisodeStore:
    """A sequence of episodes on disk. Use `create` or `open`; use it as a context manager to write."""

    def __init__(self, folder: Folder, group: zarr.Group, release: Callable[[], None] | None) -> None:
        self.folder, self._group = folder, group
        self._release = None if release is None else weakref.finalize(self, release)
        with reading(f"{folder}/zarr.json"):
            attributes: dict[str, Any] = dict(group.attrs)
            self.embodiment = Embodiment.from_dict(attributes["embodiment"])
            self.declares_actions = declares_actions(attributes["embodiment"])
            self.codec: str = attributes["codec"]
            self.provenance: Mapping[str, Any] = attributes["provenance"]
            self.records = EpisodeRecords(folder, group)
        self.room: Mapping[str, int] = {}
        """The minimum number of rows per step for new arrays of `PADDED`."""
        self._arrays = StoreArrays(folder, group, self.codec, self.total_frames)
        for name in self.streams:
            if (rows := self._arrays.length(name)) < self.total_frames:
                raise InputError(
                    f"{folder}/{name} holds {rows} of {self.total_frames} frames: the store is damaged, restore it"
                )

    @classmethod
    def create(
        cls, path: str | Path, embodiment: Embodiment, codec: str = DEFAULT, provenance: Mapping[str, Any] | None = None
    ) -> EpisodeStore:
        """Creates an empty store and opens it for appending; `codec` is the image codec (`vla.datasets.codecs`).

        `provenance` is the origin of the data, in JSON values. Raises InputError if `path` exists already.
        """
        create_group(open_folder(path), embodiment, codec, provenance or {})
        return cls.open(path, "a")

    @classmethod
    def open(cls, path: str | Path, mode: Literal["r", "a"] = "r", break_lock: bool = False) -> EpisodeStore:
        """Opens the store at `path` for reading ("r") or for reading and appending ("a").

        `break_lock` removes the lock that a killed writer left in an object store.

        Raises:
            InputError: the store is missing, damaged, not an episode store or of another version; or, for appending,
                another process is writing to it.
        """
        folder = open_folder(path)
        group = open_group(folder, "r" if mode == "r" else "r+")
        return cls(folder, group, None if mode == "r" else folder.lock(break_lock))

    def close(self) -> None:
        """Releases the write lock. Reading still works."""
        if self._release is not None:
            self._release()

    def __reduce__(self) -> tuple[Callable[..., EpisodeStore], tuple[str, int, int]]:
        """Pickles as a reference: another process opens the same store for reading."""
        return _opened_again, (self.path, len(self), self.total_frames)

    def __enter__(self) -> EpisodeStore:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: SupportsIndex) -> Episode:
        """Episode `index`. Raises InputError if its data do not match its checksum."""
        record = self.records[index]
        where = np.arange(record.offset, record.offset + record.length)
        self.stored(index)
        rows = {name: self.rows(name)[record.frames].copy() for name in (*ALWAYS, *record.streams) if is_rows(name)}
        return Episode(
            images={camera: self.frames(camera, where) for camera in self.embodiment.cameras},
            instruction=record.instruction,
            embodiment=self.embodiment,
            success=record.success,
            info=record.info,
            paraphrases=record.paraphrases,
            spans=record.spans,
            depth={name: self.depth(name, where) for name in names_under("depth", record.streams)},
            extras={name: rows.pop(f"extras/{name}") for name in names_under("extras", record.streams)},
            **rows,
        )

    def __iter__(self) -> Iterator[Episode]:
        return (self[index] for index in range(len(self)))

    @property
    def path(self) -> str:
        """The store's local path or URL."""
        return str(self.folder)

    @property
    def total_frames(self) -> int:
        """The number of frames of all episodes."""
        return self.records.frames(-1).stop if self.records else 0

    @property
    def state(self) -> Rows:
        """(n, s): states of all frames."""
        return self.rows("state")

    @property
    def action(self) -> Rows:
        """(n, a): actions of all frames."""
        return self.rows("action")

    @property
    def time(self) -> Rows:
        """(n,): capture times of all frames [s]."""
        return self.rows("time")

    @property
    def points(self) -> Rows | None:
        """(n, p, 2): points of all frames, NaN where unknown; None if no episode has any."""
        return self.rows("points") if "points" in self.streams else None

    def rows(self, name: str) -> Rows:
        """All frames of an array of numbers: "state", "extras/force"."""
        return self._arrays.rows(name)

    def frames(self, camera: str, indices: Int[np.ndarray, "n"] | Sequence[int]) -> UInt8[np.ndarray, "n h w 3"]:
        """Decoded frames of `camera` at `indices`, counted over all episodes."""
        if camera not in self.embodiment.cameras:
            raise InputError(f"{self.folder} has no camera {camera!r}: it has {', '.join(self.embodiment.cameras)}")
        return self._arrays.frames(f"images/{camera}").read(self._checked(indices))

    def image(self, camera: str, index: int) -> StoredImage:
        """A frame of `camera`, not yet decoded, so that a batch can be decoded together."""
        return StoredImage(self._arrays.frames(f"images/{camera}"), int(self._checked([index])[0]))

    def depth(self, camera: str, indices: Int[np.ndarray, "n"] | Sequence[int]) -> UInt16[np.ndarray, "n h w"]:
        """Depth [mm] of `camera` at `indices`; 0 where unknown."""
        if f"depth/{camera}" not in self.streams:
            available = ", ".join(names_under("depth", sorted(self.streams))) or "none"
            raise InputError(f"{self.folder} has no depth of {camera!r}: it has {available}")
        return self._arrays.frames(f"depth/{camera}").read(self._checked(indices))

    @property
    def summary(self) -> StoreSummary:
        """Counts, durations and image sizes of the store."""
        sizes = {name: self._arrays.frames(f"images/{name}").shape for name in self.embodiment.cameras if self.records}
        return StoreSummary.of(self.path, self.embodiment, self.records, sizes)

    def statistics(self, episodes: Sequence[int] | None = None) -> dict[Literal["state", "action"], Statistics]:
        """Statistics of `state` and `action` over `episodes` (default: all); decodes no image.

        Raises InputError naming episode, step and component where a value is not finite.
        """
        selected = range(len(self)) if episodes is None else episodes
        if not selected:
            raise InputError(f"{self.folder} has no episodes to compute statistics of: record some first")
        return statistics_of(
            selected, lambda kind, i: self.rows(kind)[self.records.frames(i)], self.embodiment, self.path
        )

    def check(self, episode: Episode) -> None:
        """Raises InputError if the episode does not fit the store, or is empty, inconsistent or not finite."""
        episode = self._fitted(episode)
        check_episode(episode, self.embodiment, self.shapes)
        self._record(episode).to_json()
        check_names("an extra", names_under("extras", self.streams | by_name(episode).keys()))

    def stream_images(self) -> ImageStream:
        """A stream for the images of an episode that is being recorded. Pass it to `append` at the end."""
        self._check_writable()
        cameras = self.embodiment.cameras if self.records else ()
        return ImageStream(self._arrays, {name: self._arrays.frames(f"images/{name}").shape for name in cameras})

    def append(self, episode: Episode, images: ImageStream | None = None) -> None:
        """Adds `episode` atomically. If `images` is passed, the images are taken from it.

        Raises InputError, before anything is written, if the episode does not fit the store (`check`).
        """
        self._check_writable()
        episode = self._fitted(episode)
        self.check(episode)
        self._join(episode.embodiment)
        arrays = by_name(episode)
        self._create_missing({name: (values.shape[1:], values.dtype) for name, values in arrays.items()})
        streams = {} if images is None else images.arrays
        unstreamed = {name: values for name, values in arrays.items() if name not in streams}
        content = {n: [v] if is_rows(n) else self._arrays.frames(n).encode(v) for n, v in unstreamed.items()}
        self._commit(content, self._record(episode), streams)

    def _record(self, episode: Episode) -> EpisodeRecord:
        streams = tuple(n for n in by_name(episode) if n not in ALWAYS and not n.startswith("images/"))
        return EpisodeRecord.of(episode, self.total_frames, streams)

    def set_provenance(self, provenance: Mapping[str, Any]) -> None:
        """Replaces the provenance: the origin of the data, in JSON values."""
        self._check_writable()
        self._group.update_attributes({"provenance": dict(provenance)})
        self.provenance = dict(provenance)

    def set_embodiment(self, embodiment: Embodiment) -> None:
        """Replaces the description of the robot. Raises InputError if its components or cameras differ."""
        self._check_writable()
        for field in ("state", "action", "cameras"):
            if getattr(embodiment, field) != getattr(self.embodiment, field):
                raise InputError(f"{self.folder}: the {field} of a store cannot change")
        self._write_embodiment(embodiment)

    def append_from(
        self, other: EpisodeStore, index: int, embodiment: Embodiment | None = None, **changes: Any
    ) -> None:
        """Adds episode `index` of `other`. Images of the same codec are copied without decoding.

        Args:
            other: the store to copy from.
            index: the episode's index in `other`.
            embodiment: that of `other` with new names; cameras are in the same order.
            **changes: new values for fields in `EDITABLE`.

        Raises:
            InputError: the episode is damaged or does not fit this store.
        """
        self._check_writable()
        body = embodiment or other.embodiment
        names = dict(zip(other.embodiment.cameras, body.cameras, strict=True))
        self.embodiment.union([body])
        record = other.records[index].edited(changes)
        moved = {f"{kind}/{old}": f"{kind}/{new}" for old, new in names.items() for kind in ("images", "depth")}
        shapes = {moved.get(name, name): other._arrays.shape(name) for name in other._names(record)}
        own_shapes = self.shapes
        rows = self._padded({n: other.rows(n)[record.frames] for n in PADDED if n in record.streams}, body.cameras)
        shapes |= {name: (values.shape[1:], values.dtype) for name, values in rows.items()}
        if other.codec != self.codec or any(own_shapes.get(name, shape) != shape for name, shape in shapes.items()):
            episode = other[index]
            images, depth = ({names[c]: frames for c, frames in of.items()} for of in (episode.images, episode.depth))
            labels = {name: getattr(record, name) for name in EDITABLE}
            self.append(replace(episode, embodiment=body, images=images, depth=depth, **labels))
            return
        content = {moved.get(name, name): stored for name, stored in other.stored(index).items()}
        content |= {name: [values] for name, values in rows.items()}
        record = replace(record, streams=tuple(moved.get(name, name) for name in record.streams))
        record.to_json()
        self._join(body)
        self.append_stored(content, record, shapes)

    def append_stored(self, content: Content, record: EpisodeRecord, shapes: Mapping[str, Shape]) -> None:
        """Adds an episode of the same codec from its arrays in the form of `stored`. `shapes` are the row shapes."""
        self._check_writable()
        record.to_json()
        self._create_missing(shapes)
        self._commit(content, record, {})

    def edit(self, changes: Mapping[int, Mapping[str, Any]]) -> None:
        """Changes fields in `EDITABLE` of episodes, {index: {field: value}}. On any failure, none is changed."""
        self._check_writable()
        self.records.replace({index: self.records[index].edited(values) for index, values in changes.items()})

    def stored(self, index: SupportsIndex) -> dict[str, Sequence[Any]]:
        """The episode's arrays as stored in the files. Raises InputError if they do not match its checksum."""
        record = self.records[index]
        stored = {name: self._arrays.stored(name, record.frames) for name in self._names(record)}
        if checksum(piece for pieces in stored.values() for piece in pieces) != record.checksum:
            for camera in self.embodiment.cameras:  # decoding a damaged image raises an error that names its shard
                self.frames(camera, np.arange(record.offset, record.frames.stop))
            raise InputError(f"episode {index} of {self.folder} does not match its checksum: restore it from a copy")
        return stored

    @property
    def unfinished_frames(self) -> int:
        """The number of steps after the last episode, left by a killed writer. The next append overwrites them."""
        return max(map(self._arrays.length, self.streams)) - self.total_frames

    def trim(self) -> int:
        """Removes the steps after the last episode. Returns their number."""
        self._check_writable()
        removed = self.unfinished_frames
        for name in self.streams:
            self._arrays.resize(name, self.total_frames)
        self._arrays.forget(self.total_frames)
        self.records.trim()
        return removed

    @property
    def streams(self) -> set[str]:
        """Names of the arrays that hold the committed frames."""
        images = {f"images/{camera}" for camera in self.embodiment.cameras} if self.records else set()
        return {*ALWAYS, *images, *self.records.streams}

    @property
    def shapes(self) -> dict[str, Shape]:
        """Shape and type of a row of each of the `streams`."""
        return {name: self._arrays.shape(name) for name in self.streams}

    def _check_writable(self) -> None:
        if self._release is None or not self._release.alive:
            raise InputError(f"{self.folder} is not open for writing: open it with mode 'a'")

    def _names(self, record: EpisodeRecord) -> tuple[str, ...]:
        """The arrays of an episode, in the order in which its checksum covers them."""
        return (*(f"images/{camera}" for camera in self.embodiment.cameras), *ALWAYS, *record.streams)

    def _join(self, body: Embodiment) -> None:
        """Extends the store's value ranges to cover those of the episode's robot."""
        if (union := self.embodiment.union([body])) != self.embodiment:
            self._write_embodiment(union)

    def _write_embodiment(self, embodiment: Embodiment) -> None:
        self._group.update_attributes({"embodiment": embodiment.to_dict()})
        self.embodiment, self.declares_actions = embodiment, True

    def _fitted(self, episode: Episode) -> Episode:
        """The episode with the store's order of cameras, and with points and chunks padded to the store's rows."""
        self.embodiment.union([episode.embodiment])
        rows = {name: values for name in PADDED if (values := getattr(episode, name)) is not None}
        fitted: dict[str, Any] = self._padded(rows, episode.embodiment.cameras)
        return replace(episode, embodiment=replace(episode.embodiment, cameras=self.embodiment.cameras), **fitted)

    def _padded(self, rows: Mapping[str, np.ndarray], cameras: Sequence[str]) -> dict[str, Any]:
        """The arrays of `PADDED` of an episode with these cameras, padded to the rows of the store's arrays."""
        first = {name: max(self.room.get(name, 0), values.shape[1]) for name, values in rows.items()}
        height = {n: self._arrays.shape(n)[0][0] if n in self.streams else first[n] for n in rows}
        return {n: padded(n, values, height[n], cameras, self.embodiment.cameras) for n, values in rows.items()}

    def _create_missing(self, shapes: Mapping[str, Shape]) -> None:
        # Arrays left by a killed writer are not among the streams. They are replaced, since their shapes may differ.
        existing = self.streams
        check_names("an extra", names_under("extras", existing | shapes.keys()))
        self._arrays.create({name: shape for name, shape in shapes.items() if name not in existing})

    def _commit(self, content: Content, record: EpisodeRecord, streams: Mapping[str, FrameStream]) -> None:
        arrays = ([streams[name].digest] if name in streams else content[name] for name in self._names(record))
        crc = checksum(piece for pieces in arrays for piece in pieces)
        record = replace(record, offset=self.total_frames, checksum=crc)
        self._arrays.write(self.streams | content.keys() | streams.keys(), content, record.length, streams)
        self.records.append(record)
        self._arrays.forget(self.total_frames)

    def _checked(self, indices: Int[np.ndarray, "n"] | Sequence[int]) -> Int[np.ndarray, "n"]:
        indices = np.asarray(indices, np.int64)
        if len(indices) and (indices.min() < 0 or indices.max() >= self.total_frames):
            raise IndexError(f"frames {indices.min()} to {indices.max()} of {self.total_frames}")
        return indices


def _opened_again(path: str, episodes: int, frames: int) -> EpisodeStore:
    """The store, which may have grown since. Raises InputError if it was replaced by another."""
    store = EpisodeStore.open(path)
    if len(store) < episodes or (episodes and store.records.ends[episodes - 1] != frames):
        raise InputError(f"{path} was replaced while it was open (by vla data?): open it again")
    return store
