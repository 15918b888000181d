"""Reader of HDF5 demonstrations as robomimic, LIBERO and ALOHA (ACT) write them, and as their relatives do.

| layout    | file                     | episode         | observations                    | actions   |
|-----------|--------------------------|-----------------|---------------------------------|-----------|
| robomimic | one                      | `data/demo_<n>` | `obs/<key>`                     | `actions` |
| LIBERO    | one a task, in a folder  | `data/demo_<n>` | `obs/<key>`                     | `actions` |
| ALOHA     | one an episode, a folder | the file        | `observations/{qpos, images/…}` | `action`  |

The files of MimicGen, robocasa, Isaac Lab and ManiSkill have robomimic's layout. Episodes are the children of `data`,
or the file itself, or its groups. The layout is the one that the user states; otherwise LIBERO if the attribute
`problem_info` or the datasets of LIBERO exist, ALOHA if there are `observations`, and else robomimic.

The state is, in this order: for robomimic `eef_pos`, `eef_quat` and `gripper_qpos` of `robot0`, then of `robot1`, or
without these all (t, n) observations of floats by name; for LIBERO `ee_pos` and `ee_ori` (or `ee_states`), and
`gripper_states`; for ALOHA `qpos`. ALOHA's actions are the leaders' `qpos` and are named accordingly, so that they are
matched with the arms' positions. Mobile ALOHA's `base_action` follows them if the base ever moves.

Observations that are images are cameras (`image_columns.FrameArray`), and so are rows of encoded images. Datasets with
"depth" in their name are depth (floats are meters). All other datasets with one row per step become extras of the same
name, except for `next_obs`, which is `obs` one step later; the provenance lists the remaining ones. An episode is
successful if its attribute `success` is true, or if it has a reward above 0; if no episode has either, success is
unknown.

LIBERO stores the images of all cameras from the bottom row up, as OpenGL renders them. They are flipped vertically and
not otherwise changed (a rotation by 180 degrees, which some conversions apply, would mirror the scene), unless the
attribute `macros_image_convention` is opencv. The images of robomimic and ALOHA are upright.

Sources: Mandlekar et al., "What Matters in Learning from Offline Human Demonstrations", 2021; Liu et al., "LIBERO",
2023; Zhao et al., "Learning Fine-Grained Bimanual Manipulation with Low-Cost Hardware", 2023; Fu et al., "Mobile
ALOHA", 2024. LIBERO files without attributes are written by OpenVLA's regenerate_libero_dataset.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8, UInt16

from vla.datasets.formats.columns import concatenate, control_rate, extremes, natural_order
from vla.datasets.formats.hdf5_check import unreadable as find_unreadable
from vla.datasets.formats.hdf5_kind import (
    BASE,
    KINDS,
    USUAL_HZ,
    Kind,
    environment,
    episode_groups,
    instruction_of,
    kind_of,
    stated_actions,
    stated_rate,
    states_libero,
    upside_down,
)
from vla.datasets.formats.hdf5_layout import Choice, Layout
from vla.datasets.formats.image_columns import decode_frames, decode_image, depth_mm
from vla.datasets.source_files import SKIP_ADVICE, check_file, is_lfs_pointer, reading_file
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"
SUFFIXES = (".hdf5", ".h5")
MAX_LISTED = 2
"""Maximum number of instructions in a remark."""


def detect(path: Path) -> bool:
    """Whether `path` is an HDF5 file or a folder with one, possibly as an unfetched Git LFS pointer."""
    return any(_starts_as_hdf5(file) or is_lfs_pointer(file) for file in _files(path))


def open_source(
    path: Path,
    *,
    layout: str = "hdf5",
    fps: float | None = None,
    instruction: str | None = None,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    skip: bool = False,
    unreadable: Mapping[str, str] | None = None,
) -> Hdf5Source:
    """Opens the demonstrations in the file or folder `path`. Images are read on access.

    Args:
        path: a file or a folder of files.
        layout: robomimic, libero or aloha; hdf5 detects it from the first file.
        fps: steps a second. Default: the rate that the attributes state (`control_freq` of `env_args`, `fps`, …);
            otherwise 50 for ALOHA and 20 for LIBERO.
        instruction: the instruction of all episodes. Default: LIBERO's `language_instruction`, or the words of its
            file's name; a demonstration's `lang` (in its `ep_meta`); an attribute or dataset such as
            `language_instruction`; the words of robomimic's `env_name`.
        state: names of the datasets that form the state, in order. Default: as above.
        action: names of the datasets that form the action, in order. Default: as above.
        cameras: names of the cameras to read. Default: all.
        skip: whether unreadable episodes are `faults` of the source, as long as one is readable.
        unreadable: `Hdf5Source.unreadable` of the same files, which are then not checked again.

    Raises:
        InputError: a file is damaged, of an unknown layout or of another layout than the first; or the control rate is
            unknown.
    """
    files = _files(path)
    if not files:
        raise InputError(f"{path} is neither an HDF5 file nor a folder of .hdf5 files")
    found = find_unreadable(files) if unreadable is None else {Path(file): why for file, why in unreadable.items()}
    return Hdf5Source(path, files, Choice(layout, fps, instruction, state, action, cameras, skip), found)


@dataclass(frozen=True)
class _Outline:
    """The information on an episode from the scan of all files. `stated`: whether the file states its success."""

    instruction: str
    by_name: bool
    success: bool
    stated: bool


class Hdf5Source:
    """The demonstrations in HDF5 files, in the natural order of their names (see `open_source`).

    `unreadable` are the files on which libhdf5 hangs or crashes, with the reason.
    """

    def __init__(self, path: Path, files: Sequence[Path], choice: Choice, unreadable: Mapping[Path, str]) -> None:
        self._instruction, self._skip, self._several = choice.instruction, choice.skip, len(files) > 1
        self._faults: dict[int, str] = {}
        self._unreadable = unreadable
        self._outlines: dict[int, _Outline] = {}
        self._episodes: list[tuple[Path, str]] = []
        moves = False
        for file in files:
            names = ["/"]
            with self._recording_faults(len(self._episodes)), self._open(file) as opened:
                names = episode_groups(opened, file)
                moves |= any(BASE in opened[name] and bool(np.any(opened[name][BASE][()])) for name in names)
            self._episodes += [(file, name) for name in names]
        self._stated_kind: Kind | None = next((kind for kind in KINDS if kind == choice.layout), None)
        for index, (file, name) in enumerate(self._episodes):
            with self._recording_faults(index), self._open(file) as opened:
                if index in self._faults:
                    continue
                group = opened[name]
                detected, reason = kind_of(opened, group)
                self._kind = self._stated_kind or detected
                self._layout = Layout.of(group, self._kind, replace(choice, base=moves), _where(file, name))
                env = environment(opened, file)
                rate = stated_rate(opened, env)
                self._flipped = upside_down(opened, self._kind)
                break
        else:
            raise InputError(f"no episode of {path} can be read: {next(iter(self._faults.values()))}")
        usual = USUAL_HZ.get(self._kind)
        low, high = extremes(self._scan(), len(self._layout.action_names))
        self._stated = any(outline.stated for outline in self._outlines.values())
        robots = (env.get("env_kwargs") or {}).get("robots", ())
        action = self._layout.action_names
        stated, modes, grippers = stated_actions(self._kind, env, action)
        # Files of other robots in ALOHA's layout may have other actions: inference from the data takes precedence.
        customary = self._kind == "aloha"
        self.embodiment = Embodiment(
            name="-".join([robots] if isinstance(robots, str) else map(str, robots)).lower() or self._kind,
            cameras=tuple(self._layout.cameras),
            state=self._layout.state_names,
            action=action,
            action_low=low,
            action_high=high,
            control_hz=control_rate(choice.fps, usual if rate is None else rate, str(path)),
            action_mode=modes,
            grippers=grippers,
        )
        self.provenance: Mapping[str, Any] = {
            "format": self._kind,
            "name": path.name,
            "datasets": {name: list(shape) for name, shape in self._layout.shapes.items()},
            "state": list(self._layout.state),
            "action": list(self._layout.action) if len(self._layout.action) > 1 else [],
            "left_out": dict(self._layout.left_out),
            "flipped": self._flipped,
            "env_args": env,
            "actions_stated": "" if customary else stated,
            "actions_usual": stated if customary else "",
            "remarks": list(self._remarks("" if self._stated_kind else reason, choice.fps is None and rate is None)),
        }

    def __len__(self) -> int:
        return len(self._episodes)

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError that names the file and the dataset if it is damaged."""
        path, name = self._episodes[index]
        with self._open(path) as file:
            group, layout = file[name], self._layout
            steps = layout.check(group, _where(path, name))
            state, action = self._numbers(group, steps)
            return Episode(
                images={camera: self._frames(group, key, path) for camera, key in layout.cameras.items()},
                state=state,
                action=action,
                time=np.arange(steps) / self.embodiment.control_hz,
                instruction=self._task(file, group, path),
                embodiment=self.embodiment,
                success=self._outlines[index].success if self._stated else None,
                info={"file": path.name, "demonstration": name, "masks": _masks(file, name)},
                depth={camera: self._depth(group, key, path) for camera, key in layout.depth.items()},
                extras={extra: layout.read(group, key) for extra, key in layout.extras.items()},
            )

    def numbers(self, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of an episode. Raises InputError as `__getitem__` does."""
        path, name = self._episodes[index]
        with self._open(path) as file:
            return self._numbers(file[name], self._layout.check(file[name], _where(path, name)))

    def _numbers(self, group: h5py.Group, steps: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        state, action = (
            concatenate((self._layout.read(group, key) for key in columns.values()), steps)
            for columns in (self._layout.state, self._layout.action)
        )
        return state, action

    def _task(self, file: h5py.File, group: h5py.Group, path: Path) -> str:
        return instruction_of(file, group, self._kind, path) if self._instruction is None else self._instruction

    def _frames(self, group: h5py.Group, key: str, path: Path) -> UInt8[np.ndarray, "t h w 3"]:
        rows = self._layout.read(group, key)
        if key in self._layout.encoded:
            return self._upright(decode_frames(map(bytes, rows), _where(path, key)))
        return self._upright(self._layout.arrays[key].frames(rows, _where(path, key)))

    def _depth(self, group: h5py.Group, key: str, path: Path) -> UInt16[np.ndarray, "t h w"]:
        rows = self._layout.read(group, key)
        if key in self._layout.encoded:
            rows = np.stack([decode_image(bytes(row), _where(path, key)) for row in rows])
        return self._upright(depth_mm(rows))

    def _upright(self, frames: Shaped[np.ndarray, "t h *w"]) -> Shaped[np.ndarray, "t h *w"]:
        return np.ascontiguousarray(frames[:, ::-1]) if self._flipped else frames

    @property
    def unreadable(self) -> Mapping[str, str]:
        """See `ChecksFiles`."""
        return {str(file): why for file, why in self._unreadable.items()}

    def faults(self) -> Mapping[int, str]:
        """The reasons for unreadable episodes if `skip` is true."""
        return self._faults

    @contextmanager
    def _open(self, path: Path) -> Iterator[h5py.File]:
        import h5py

        check_file(path)
        if path in self._unreadable:
            raise InputError(self._unreadable[path])
        with reading_file(path, "HDF5"), h5py.File(path, "r") as file:
            yield file

    @contextmanager
    def _recording_faults(self, index: int) -> Iterator[None]:
        """Records an InputError as the fault of episode `index` if such episodes are to be skipped."""
        try:
            yield
        except InputError as error:
            if not self._skip:
                raise InputError(f"{error}; {SKIP_ADVICE}" if self._several else str(error)) from error
            self._faults.setdefault(index, str(error))

    def _scan(self) -> Iterator[Float[np.ndarray, "t a"]]:
        """The actions of all episodes, checked against the first one's layout. Records successes and instructions."""
        for path, members in itertools.groupby(enumerate(self._episodes), key=lambda member: member[1][0]):
            first, *others = ((index, name) for index, (_, name) in members)
            with self._recording_faults(first[0]), self._open(path) as file:
                for index, name in (first, *others):
                    with self._recording_faults(index):
                        yield self._examine(file, path, index, name)

    def _examine(self, file: h5py.File, path: Path, index: int, name: str) -> Float[np.ndarray, "t a"]:
        group = file[name]
        detected = kind_of(file, group)[0]
        if self._stated_kind is None and detected != self._kind:
            raise InputError(f"{path} is a {detected} file among {self._kind} files: convert it alone")
        steps = self._layout.check(group, _where(path, name))
        rewarded = "rewards" in group and bool((group["rewards"][()] > 0).any())
        actions = concatenate((self._layout.read(group, key) for key in self._layout.action.values()), steps)
        self._outlines[index] = _Outline(
            instruction=self._task(file, group, path),
            by_name=self._kind == "libero" and not states_libero(file),
            success=bool(group.attrs.get("success", rewarded)),
            stated=rewarded or "success" in group.attrs,
        )
        return actions

    def _remarks(self, reason: str, usual_rate: bool) -> Iterator[str]:
        """What was inferred, and the options that override it."""
        if reason:
            flipped = ", its images are flipped" if self._flipped else ""
            yield f"detected as LIBERO by {reason}{flipped}: format=robomimic overrides this"
        if usual_rate:
            yield f"{USUAL_HZ[self._kind]:g} steps a second, the default of {self._kind.upper()}: fps=… overrides this"
        outlines = self._outlines.values()
        texts = list(map(repr, dict.fromkeys(outline.instruction for outline in outlines)))
        if self._instruction is None and any(outline.by_name for outline in outlines):
            shown = ", ".join(texts[:MAX_LISTED]) + (
                f" and {len(texts) - MAX_LISTED} more" if len(texts) > MAX_LISTED else ""
            )
            yield f"the instruction is the name of the file, {shown}: instruction='…' overrides this"
        yield from (array.remark for array in self._layout.arrays.values() if array.remark)
        if self._layout.longer:
            yield f"the last row of {', '.join(sorted(self._layout.longer))} is left out: no action follows it"


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    candidates = path.iterdir() if path.is_dir() else ()
    return sorted((f for f in candidates if f.suffix in SUFFIXES), key=lambda file: natural_order(file.name))


def _starts_as_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(SIGNATURE)) == SIGNATURE


def _where(path: Path, name: str) -> str:
    return f"{path} {name}".removesuffix(" /")


def _masks(file: h5py.File, name: str) -> list[str]:
    """The filter keys (train, valid, …) whose lists contain the demonstration."""
    lists = file["mask"].items() if "mask" in file else ()
    return sorted(mask for mask, members in lists if name.split("/")[-1].encode() in members[()])
