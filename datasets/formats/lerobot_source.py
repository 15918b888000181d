"""Episodes of a LeRobot dataset of any supported version."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8, UInt16

from vla.datasets.formats.columns import concatenate, extremes, instruction_and_spans
from vla.datasets.formats.image_columns import decode_frames, decode_image
from vla.datasets.formats.lerobot_features import (
    CHUNKS,
    COUNTERS,
    KNOWN_PREFIX,
    OWN_PREFIX,
    POINTS,
    TIME,
    FeatureMap,
    Features,
    names_of,
    row_shape,
)
from vla.datasets.formats.lerobot_side import Side
from vla.datasets.formats.lerobot_times import Clock, ClockSurvey
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode, Span

if TYPE_CHECKING:
    import pyarrow as pa

    from vla.datasets.formats.video_frames import VideoReader

Info = Mapping[str, Any]


@runtime_checkable
class LeRobotFiles(Protocol):
    """The files of a dataset of one version: they find the rows and frames of each episode."""

    root: Path
    info: Info
    """The content of meta/info.json."""
    lengths: Sequence[int]
    """The number of steps of each episode."""
    tasks: Mapping[int, str]

    @property
    def remarks(self) -> Sequence[str]:
        """Remarks for the user on the files read so far, one sentence each."""
        ...

    def faults(self) -> Mapping[int, str]:
        """The reasons for unreadable episodes, as far as known without reading them."""
        ...

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        """The columns of episode `index`, one row per step."""
        ...

    def video(self, index: int, feature: str) -> tuple[Path, float]:
        """The video file with the frames of episode `index`, and the time [s] of its first frame."""
        ...

    def details(self, index: int) -> dict[str, Any]:
        """Further information on episode `index`, in JSON values."""
        ...

    def columns(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """The columns of all readable episodes, in batches of bounded size."""
        ...


class LeRobotSource:
    """An `EpisodeSource` over LeRobot files. Episodes are decoded on access."""

    def __init__(
        self, files: LeRobotFiles, features: FeatureMap, side: Side | None = None, instruction: str | None = None
    ) -> None:
        """`instruction` is the instruction of all episodes. None: the tasks of the dataset."""
        self._files = files
        self._map = features
        self._side = side
        self._instruction = instruction
        self._schema: Features = files.info["features"]
        self._clock = Clock(float(files.info["fps"]))
        self._videos: dict[str, VideoReader] = {}

    def __len__(self) -> int:
        return len(self._files.lengths)

    @cached_property
    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the state's and of the action's components."""
        state, action = (
            names_of(keys, self._schema, self._map.renamed) for keys in (self._map.state, self._map.action)
        )
        return state, action

    @property
    def _matching_side(self) -> Side | None:
        """The side file if its embodiment has the same numbers of components."""
        body, widths = self._side.embodiment if self._side else None, tuple(map(len, self._names))
        return self._side if body and (len(body.state), len(body.action)) == widths else None

    @cached_property
    def embodiment(self) -> Embodiment:
        """The side file's embodiment, or one from the robot's type, the features and the extremes of the actions."""
        state, action = self._names
        if self._matching_side:
            side = self._matching_side.embodiment
            same = set(side.cameras) == set(self._map.cameras)
            return side if same else replace(side, cameras=tuple(self._map.cameras))
        low, high = extremes(self._actions(), len(action))
        return Embodiment(
            name=self._files.info.get("robot_type") or self._files.root.name,
            cameras=tuple(self._map.cameras),
            state=state,
            action=action,
            action_low=low,
            action_high=high,
            control_hz=float(self._files.info["fps"]),
        )

    def faults(self) -> Mapping[int, str]:
        """The reasons for unreadable episodes, as far as known without decoding them."""
        _ = self.embodiment, self.provenance  # these read columns of all files, which finds unreadable ones
        return self._files.faults()

    def _actions(self) -> Iterator[Float[np.ndarray, "t a"]]:
        for table in self._files.columns(self._map.action):
            try:
                yield self._numbers(table, self._map.action)
            except ValueError:
                continue  # reported when the episode is read

    @property
    def _has_videos(self) -> bool:
        visual = (*self._map.cameras.values(), *self._map.depth.values())
        return not all(self._schema[key]["dtype"] == "image" for key in visual)

    @cached_property
    def _survey(self) -> ClockSurvey:
        survey = ClockSurvey(self._clock, regular=TIME not in self._schema)
        for table in self._files.columns(("timestamp", "frame_index")):
            steps, stamps = numbers(table["frame_index"], "int64", ()), numbers(table["timestamp"], "float64", ())
            for start, stop in pairwise([0, *(np.flatnonzero(np.diff(steps) <= 0) + 1), len(steps)]):
                survey.add(stamps[start:stop], steps[start:stop])
        return survey

    @cached_property
    def provenance(self) -> Mapping[str, Any]:
        """The schema and the use of each feature, with which `lerobot_v3_writer` restores the original features."""
        info = self._files.info
        metadata = {key: info[key] for key in ("robot_type", "license") if info.get(key)}
        origin = self._side.provenance if self._side else {}
        if origin and origin.get("format") != "lerobot":
            metadata["origin"] = dict(origin)
        return {
            "format": "lerobot",
            "version": info["codebase_version"],
            "name": self._files.root.name,
            "fps": info["fps"],
            "features": {self._map.name(key): dict(one) for key, one in self._schema.items() if key not in COUNTERS},
            **self._map.to_dict(),
            "remarks": [*self._files.remarks, *self._map.remarks, *self._survey.remarks(self._has_videos)],
            "actions_stated": "in meta/vla.json"
            if self._matching_side and self._matching_side.declares_actions
            else "",
            "regular_time": self._survey.regular,
            **metadata,
        }

    def __getitem__(self, index: int) -> Episode:
        if not 0 <= index < len(self):
            raise IndexError(f"episode {index} of {len(self)}")
        try:
            return self._read(index)
        except Exception as error:  # third-party libraries raise almost any exception on damaged files
            raise InputError(f"episode {index} of {self._files.root} cannot be read: {error}") from error

    def _read(self, index: int) -> Episode:
        visual = (*self._map.cameras.values(), *self._map.depth.values())
        inline = [key for key in visual if self._schema[key]["dtype"] == "image"]
        added = [key for key in self._schema if key.startswith(OWN_PREFIX) and self._is_column(key)]
        standard = ("timestamp", "task_index", *self._map.state, *self._map.action, *self._map.texts, *added, *inline)
        table = self._files.rows(index, [*standard, *filter(self._is_column, self._map.extras.values())])
        steps = table.num_rows
        timestamps = self._clock.times(numbers(table["timestamp"], "float64", ()))
        instruction, spans = self._tasks(numbers(table["task_index"], "int64", ()))
        rows = {TIME: (), POINTS: (-1, 2), CHUNKS: (-1, len(self.embodiment.action))}
        optional = {
            key: self._column(table, key).reshape(steps, *row) for key, row in rows.items() if key in self._schema
        }
        details = self._files.details(index)
        texts = {self._map.name(key): table[key].to_pylist() for key in self._map.texts}
        episode = Episode(
            images={name: self._frames(index, table, key, timestamps) for name, key in self._map.cameras.items()},
            state=self._numbers(table, self._map.state),
            action=self._numbers(table, self._map.action),
            time=optional.get(TIME, timestamps),
            instruction=instruction,
            embodiment=self.embodiment,
            success=self._success(table),
            info=details | ({"steps": texts} if texts else {}),
            chunks=optional.get(CHUNKS),
            points=optional.get(POINTS),
            spans=spans,
            depth={name: self._depth(index, table, key, timestamps) for name, key in self._map.depth.items()},
            extras={name: self._extra(index, table, key, timestamps) for name, key in self._map.extras.items()},
        )
        return episode if self._side is None else self._with_side(episode, self._side, index)

    def _with_side(self, episode: Episode, side: Side, index: int) -> Episode:
        stored = side.episodes[index]
        rows = {name: tuple(shape) for name, shape in side.rows.items()}
        return replace(
            episode,
            success=stored.success,
            info=dict(stored.info),
            **({} if self._instruction is not None else stored.words()),
            points=None if "points" in stored.absent else episode.points,
            chunks=None if "chunks" in stored.absent else episode.chunks,
            depth={name: maps for name, maps in episode.depth.items() if f"depth/{name}" not in stored.absent},
            extras={
                name: values.reshape(len(episode), *rows.get(name, values.shape[1:]))
                for name, values in episode.extras.items()
                if f"extras/{name}" not in stored.absent
            },
        )

    def numbers(self, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of episode `index`."""
        table = self._files.rows(index, [*self._map.state, *self._map.action])
        return self._numbers(table, self._map.state), self._numbers(table, self._map.action)

    def _is_column(self, key: str) -> bool:
        return bool(self._schema[key]["dtype"] != "video")

    def _numbers(self, table: pa.Table, keys: Sequence[str]) -> Float[np.ndarray, "t n"]:
        return concatenate((self._values(table, key) for key in keys), table.num_rows)

    def _values(self, table: pa.Table, key: str) -> Shaped[np.ndarray, "t ..."]:
        """A feature's values. Raises ValueError that names the feature if steps are missing or of another shape."""
        try:
            return numbers(table[key], self._schema[key]["dtype"], row_shape(self._schema[key]))
        except ValueError as error:
            raise ValueError(f"{key}: {error}") from error

    def _column(self, table: pa.Table, key: str) -> Shaped[np.ndarray, "t ..."]:
        """A feature's values, with NaN where its mask marks them as unknown."""
        values = self._values(table, key)
        if KNOWN_PREFIX + key not in self._schema:
            return values
        mask = numbers(table[KNOWN_PREFIX + key], "bool", values.shape[1:])
        return np.where(mask, values, values.dtype.type(np.nan))

    def _extra(
        self, index: int, table: pa.Table, key: str, timestamps: Float[np.ndarray, "t"]
    ) -> Shaped[np.ndarray, "t ..."]:
        if self._schema[key]["dtype"] in ("image", "video"):
            return self._depth(index, table, key, timestamps)
        return self._column(table, key)

    def _success(self, table: pa.Table) -> bool | None:
        for name in ("next.success", "success", "is_success"):
            if name in self._map.extras:
                return bool(self._column(table, self._map.extras[name]).any())
        return None

    def _tasks(self, indices: Int[np.ndarray, "t"]) -> tuple[str, tuple[Span, ...]]:
        """The instruction of the episode, and its spans if the task changes."""
        if self._instruction is not None:
            return self._instruction, ()
        for index in np.unique(indices).tolist():
            if index not in self._files.tasks:
                raise InputError(f"its task_index {index} is not in meta/tasks")
        return instruction_and_spans([self._files.tasks[index] for index in indices.tolist()])

    def _frames(
        self, index: int, table: pa.Table, key: str, timestamps: Float[np.ndarray, "t"]
    ) -> UInt8[np.ndarray, "t h w 3"]:
        if self._schema[key]["dtype"] == "video":
            return self._decode(index, key, timestamps, "rgb24")
        return decode_frames(self._image_bytes(table, key), f"the image of {key!r}")

    def _depth(
        self, index: int, table: pa.Table, key: str, timestamps: Float[np.ndarray, "t"]
    ) -> UInt16[np.ndarray, "t h w"]:
        """Depth [mm], from LeRobot's codes in videos, or from integer millimeters or meters in images."""
        marks = self._schema[key].get("info") or {}
        if self._schema[key]["dtype"] == "video":
            from lerobot.configs import DepthEncoderConfig
            from lerobot.datasets.depth_utils import dequantize_depth

            codes = self._decode(index, key, timestamps, "gray12le")
            coding = DepthEncoderConfig.from_video_info(dict(marks))
            limits = {name: getattr(coding, name) for name in ("depth_min", "depth_max", "shift", "use_log")}
            return dequantize_depth(codes[..., None], output_tensor=False, **limits)[:, 0]
        encoded = enumerate(self._image_bytes(table, key))
        values = np.stack([decode_image(data, f"the image of {key!r} at step {step}") for step, data in encoded])
        if values.dtype == np.uint16 and marks.get("depth_unit") != "m":
            return values
        scale = 1000.0 if marks.get("depth_unit", "m") == "m" else 1.0
        return np.clip(np.rint(values.astype(np.float64) * scale), 0, 65535).astype(np.uint16)

    def _image_bytes(self, table: pa.Table, key: str) -> Iterator[bytes]:
        for step, cell in enumerate(table[key].to_pylist()):
            if not isinstance(cell, dict) or not (cell.get("bytes") or cell.get("path")):
                raise InputError(f"the image of {key!r} at step {step} is missing")
            yield cell["bytes"] or (self._files.root / cell["path"]).read_bytes()

    def _decode(
        self, index: int, key: str, timestamps: Float[np.ndarray, "t"], pixels: str
    ) -> Shaped[np.ndarray, "t h w ..."]:
        from vla.datasets.formats.video_frames import VideoReader

        path, offset = self._files.video(index, key)
        reader = self._videos.get(key)
        if reader is None or reader.path != path:
            if reader is not None:
                reader.close()
            self._videos[key] = reader = VideoReader(path, pixels)
        return reader.read(offset + self._clock.frame_times(timestamps), 0.5 / self._files.info["fps"])


def numbers(column: pa.ChunkedArray, dtype: str, row: tuple[int, ...]) -> Shaped[np.ndarray, "t ..."]:
    """A column of numbers or nested lists of numbers as an array of steps of shape `row`.

    Raises ValueError if a step is missing or has another shape.
    """
    import pyarrow as pa

    # A dataset without steps has no chunk. Hugging Face's arrays are of an extension type.
    values = pa.concat_arrays([getattr(chunk, "storage", chunk) for chunk in column.chunks])
    while isinstance(values, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        values = values.flatten()
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype == object or array.size != len(column) * prod(row):
        raise ValueError(f"a column holds {array.size} values of type {values.type} for {len(column)} steps of {row}")
    return array.astype(dtype, copy=False).reshape(len(column), *row)
