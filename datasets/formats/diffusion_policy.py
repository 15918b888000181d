"""Reader of the replay buffers of diffusion policy: a group of zarr v2 or v3, possibly zipped (`.zarr.zip`).

    data/<key>         (N, …), all episodes concatenated
    meta/episode_ends  (E,), the step after the last of each episode

The action is `data/action` or `data/actions`. The state is `data/state` (Push-T) or `agent_pos`, or else all (N, n)
arrays whose names begin with `robot`, by name, without velocities and the start and end poses of demonstrations.
Arrays whose rows are images are cameras (`image_columns.FrameArray`). `<camera>_depth` is a camera's depth.
`timestamp` is the time, if it exists, in seconds or a smaller unit. All other arrays become extras.

Source: Chi et al., "Diffusion Policy: Visuomotor Policy Learning via Action Diffusion", 2023.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from vla.datasets.formats.blosc_chunks import check_chunks
from vla.datasets.formats.columns import (
    TIME_UNITS,
    are_coarse,
    coarse_remark,
    component_names,
    concatenate,
    control_rate,
    extremes,
    median_step,
    select,
    time_unit,
)
from vla.datasets.formats.image_columns import FrameArray, camera_of_depth, depth_mm
from vla.datasets.source_files import check_fetched, check_file, is_lfs_pointer, read_json
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

if TYPE_CHECKING:
    import zarr

ENDS = ("meta/episode_ends/.zarray", "meta/episode_ends/zarr.json")
ACTIONS = ("action", "actions")
STATES = ("state", "agent_pos")
NOT_STATE = ("_vel", "_start_pose", "_end_pose")


def detect(path: Path) -> bool:
    """Whether `path` is a folder or a zip file with a replay buffer."""
    if path.is_dir():
        return any((path / name).is_file() for name in ENDS)
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return not set(ENDS).isdisjoint(archive.namelist())


def open_source(
    path: Path,
    *,
    fps: float | None = None,
    instruction: str = "",
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
) -> DiffusionPolicySource:
    """Opens the replay buffer at `path`. Episodes are read on access.

    Args:
        path: a folder or a zip file.
        fps: steps a second (Push-T: 10). Default: the rate of the time stamps of the first episode.
        instruction: the instruction of all episodes, since the format has none.
        state: names of the arrays that form the state, in order. Default: as above.
        action: names of the arrays that form the action, in order. Default: as above.
        cameras: names of the cameras to read. Default: all.

    Raises:
        InputError: it cannot be read, or has no actions or no episodes; or the control rate is unknown.
    """
    return DiffusionPolicySource(path, fps, instruction, state, action, cameras)


class DiffusionPolicySource:
    """The episodes of a replay buffer (see `open_source`)."""

    def __init__(
        self,
        path: Path,
        fps: float | None,
        instruction: str,
        state: Sequence[str] | None,
        action: Sequence[str] | None,
        cameras: Sequence[str] | None,
    ) -> None:
        self._path = path
        self._instruction = instruction
        self._data, self._ends = _open(path)
        shapes = {name: data.shape[1:] for name, data in self._data.items()}
        maps = [name for name in self._data if name.endswith("depth") and len(shapes[name]) in (2, 3)]
        self._frame_arrays = {n: a for n in self._data if n not in maps and (a := self._frame_array(n))}
        videos, depth = list(self._frame_arrays), dict(camera_of_depth(maps, self._frame_arrays))
        if cameras is not None:
            videos = list(select("cameras", cameras, {name: name for name in videos}, str(path)))
        self._depth = {camera: name for camera, name in depth.items() if camera in videos}
        unchosen = {*self._frame_arrays, *depth.values()} - {*videos, *self._depth.values()}
        vectors = {name: name for name, data in self._data.items() if data.ndim <= 2 and data.dtype.kind in "biuf"}
        self._action = tuple(select("action", _action(shapes) if action is None else action, vectors, str(path)))
        self._state = tuple(select("state", _state(shapes) if state is None else state, vectors, str(path)))
        self._faults: dict[int, str] = {}
        used = {"timestamp", *videos, *self._depth.values(), *self._state, *self._action}
        self._extras = [
            name for name, data in self._data.items() if name not in used | unchosen and data.dtype.kind in "biuf"
        ]
        self._unit, stamped = self._clock(fps)
        components = tuple(n for name in self._action for n in component_names(name, shapes[name]))
        low, high = extremes(self._actions(), len(components))
        self.embodiment = Embodiment(
            name=path.name.split(".")[0],
            cameras=tuple(videos),
            state=tuple(n for name in self._state for n in component_names(name, shapes[name])),
            action=components,
            action_low=low,
            action_high=high,
            control_hz=control_rate(fps, stamped, f"{path} (Push-T has 10)"),
        )
        self.provenance: Mapping[str, Any] = {
            "format": "diffusion_policy",
            "name": path.name,
            "arrays": {name: [list(shape), str(self._data[name].dtype)] for name, shape in shapes.items()},
            "state": list(self._state),
            "action": list(self._action),
            "remarks": self._remarks(),
            "left_out": {
                n: "not among the chosen cameras" if n in unchosen else "it holds no numbers"
                for n in self._data
                if n not in used and n not in self._extras
            },
        }

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError that names an array that cannot be read."""
        action = [self._rows(name, index) for name in self._action]
        steps = len(action[0])
        return Episode(
            images={camera: self._frames(camera, index) for camera in self.embodiment.cameras},
            state=concatenate((self._rows(name, index) for name in self._state), steps),
            action=concatenate(action, steps),
            time=self._times(index, steps),
            instruction=self._instruction,
            embodiment=self.embodiment,
            success=None,
            depth={camera: depth_mm(self._rows(name, index)) for camera, name in self._depth.items()},
            extras={name: self._rows(name, index) for name in self._extras},
        )

    def _times(self, index: int, steps: int) -> Float[np.ndarray, "t"]:
        """The times [s]: the time stamps, or multiples of the period if there are none or they are unusable."""
        rate = self.embodiment.control_hz
        stamps = self._stamps(index) if "timestamp" in self._data else np.zeros(0)
        return stamps if len(stamps) and not are_coarse(stamps, rate) else np.arange(steps) / rate

    def numbers(self, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of episode `index`, without its images."""
        action = [self._rows(name, index) for name in self._action]
        steps = len(action[0])
        return concatenate((self._rows(name, index) for name in self._state), steps), concatenate(action, steps)

    def _rows(self, name: str, index: int) -> Shaped[np.ndarray, "t ..."]:
        self._check_length(name, index)
        rows = slice(self._ends[index - 1] if index else 0, self._ends[index])
        folder = self._path / "data" / name
        try:
            if self._path.is_dir():
                check_chunks(self._data[name], folder, rows.start, rows.stop)
            return np.asarray(self._data[name][rows])
        except Exception as error:  # codecs raise almost any exception on damaged chunks
            _check_fetched(folder)
            if isinstance(error, InputError):
                raise
            raise InputError(f"{self._path}: data/{name} cannot be read in episode {index}: {error}") from error

    def _check_length(self, name: str, index: int) -> None:
        rows, end = self._data[name].shape[0], self._ends[index]
        if rows < end:
            raise InputError(f"{self._path}: data/{name} has {rows} rows, episode {index} ends at {end}")

    def _first_rows(self, name: str) -> Shaped[np.ndarray, "t ..."] | None:
        """The rows of the first episode for which they can be read."""
        for index in range(len(self)):
            with suppress(InputError):
                if len(rows := self._rows(name, index)):
                    return rows
        return None

    def faults(self) -> Mapping[int, str]:
        """The reasons for unreadable episodes, as far as known without decoding their images."""
        return self._faults

    def _remarks(self) -> list[str]:
        """Remarks for the user, for example on missing chunks, which are read as zeros."""
        remarks = [array.remark for array in self._frame_arrays.values() if array.remark]
        remarks += [f"timestamp is in {self._unit}"] if self._unit != "s" else []
        if coarse := self._coarse():
            remarks.append(coarse_remark(coarse, self.embodiment.control_hz))
        for name, data in self._data.items():
            if missing := data.nchunks - data.nchunks_initialized:
                remarks.append(f"data/{name}: {missing} of {data.nchunks} chunks are missing, and are read as 0")
            if surplus := max(0, data.shape[0] - self._ends[-1]):
                remarks.append(f"data/{name}: {surplus} rows after the last episode are left out")
        return remarks

    def _coarse(self) -> int:
        """The number of episodes with readable but unusable time stamps."""
        count = 0
        for index in range(len(self)) if "timestamp" in self._data else ():
            with suppress(InputError):
                count += are_coarse(self._stamps(index), self.embodiment.control_hz)
        return count

    def _stamps(self, index: int) -> Float[np.ndarray, "t"]:
        """The time stamps of an episode [s]."""
        return self._rows("timestamp", index).astype(np.float64).ravel() / TIME_UNITS[self._unit]

    def _frames(self, camera: str, index: int) -> UInt8[np.ndarray, "t h w 3"]:
        return self._frame_arrays[camera].frames(self._rows(camera, index), f"{self._path}: data/{camera}")

    def _frame_array(self, name: str) -> FrameArray | None:
        data = self._data[name]

        def first() -> Shaped[np.ndarray, "t ..."]:
            rows = self._first_rows(name)
            return np.empty((0, *data.shape[1:]), data.dtype) if rows is None else rows

        return FrameArray.of(name, data.shape[1:], data.dtype, first)

    def _actions(self) -> Iterator[Float[np.ndarray, "t a"]]:
        """The actions of the episodes whose numbers can be read. The others are added to the faults."""
        for index in range(len(self)):
            try:
                for name in self._data:
                    self._check_length(name, index)
                rows = [self._rows(name, index) for name in self._action]
                if not len(rows[0]):
                    raise InputError("it has no steps")
                yield concatenate(rows, len(rows[0]))
            except InputError as error:
                self._faults[index] = str(error)

    def _clock(self, fps: float | None) -> tuple[str, float | None]:
        """The unit of the time stamps (of `TIME_UNITS`), and the rate of the first episode's time stamps [Hz].

        The unit is the one whose rate is closest to `fps`, or else the first whose rate is at least 1 Hz.
        """
        stamps = self._first_rows("timestamp") if "timestamp" in self._data else None
        if stamps is None or stamps.dtype.kind not in "iuf" or len(stamps) < 2:
            return "s", None
        if (step := median_step(stamps)) <= 0:
            return "s", None
        rates = {unit: round(count / step, 3) for unit, count in TIME_UNITS.items()}
        unit = time_unit(stamps, fps) if fps else next((unit for unit, rate in rates.items() if rate >= 1), "s")
        return unit, rates[unit]


def _open(path: Path) -> tuple[dict[str, zarr.Array], list[int]]:
    """The arrays below `data` by name, and the ends of the episodes."""
    import zarr
    from imagecodecs.numcodecs import register_codecs
    from zarr.storage import ZipStore

    # Image replay buffers are compressed as JPEG 2000 or JPEG XL.
    register_codecs(verbose=False)
    try:
        if not path.is_dir():
            check_file(path)
        store = path if path.is_dir() else ZipStore(path, mode="r")
        data = dict(sorted(zarr.open_group(store, path="data", mode="r").arrays()))
        listed = zarr.open_array(store, path="meta/episode_ends", mode="r")
        if path.is_dir():
            _check_fetched(path / "meta")
            check_chunks(listed, path / "meta" / "episode_ends", 0, listed.shape[0])
        ends = np.asarray(listed).tolist()
    except InputError:
        raise
    except Exception as error:  # zarr and its codecs raise almost any exception on damaged files
        for file in sorted([*path.rglob(".z*"), *path.rglob("zarr.json")]) if path.is_dir() else ():
            read_json(file)
        raise InputError(f"{path} cannot be read as a replay buffer: {error}") from error
    if not ends or any(end < start for start, end in zip([0, *ends], ends, strict=False)):
        raise InputError(f"{path}: meta/episode_ends must rise from 0, and is {ends[:5]}")
    return data, ends


def _check_fetched(folder: Path) -> None:
    """Raises InputError if the folder contains a Git LFS pointer. The folder may be missing, as in a zip file."""
    for pointer in filter(is_lfs_pointer, folder.rglob("*")):
        check_fetched(pointer)


def _action(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    return tuple(name for name in ACTIONS if name in shapes)[:1]


def _state(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    for name in STATES:
        if name in shapes:
            return (name,)
    robot = (name for name, shape in shapes.items() if name.startswith("robot") and len(shape) == 1)
    return tuple(name for name in robot if not name.endswith(NOT_STATE))
