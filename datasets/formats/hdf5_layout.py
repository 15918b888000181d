"""Which dataset of an HDF5 demonstration is what: action, state, cameras, depth or an extra (see `hdf5`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from vla.datasets.formats.columns import component_names, own_names, select
from vla.datasets.formats.hdf5_kind import ACTIONS, BASE, Kind
from vla.datasets.formats.image_columns import FrameArray, camera_of_depth, is_encoded_image
from vla.errors import InputError

if TYPE_CHECKING:
    import h5py

LIBERO_POSES = (("obs/ee_pos", "obs/ee_ori"), ("obs/ee_states",), ("obs/joint_states",))
"""What LIBERO's state begins with, the first that is there; files may also have robosuite's own names."""
ROBOT_STATE = ("eef_pos", "eef_quat", "gripper_qpos")
PREFIXES = ("observations/images/", "observations/rgb_images/", "observations/", "obs/")
OBSERVED = ("observations/", "obs/", "env_states/")
"""Groups that may have the observation after the last action, as ManiSkill's have."""


@dataclass(frozen=True)
class Choice:
    """What the user chose (see `hdf5.open_source`), None for what is usual. `base` is whether the base ever moves."""

    layout: str = "hdf5"
    fps: float | None = None
    instruction: str | None = None
    state: Sequence[str] | None = None
    action: Sequence[str] | None = None
    cameras: Sequence[str] | None = None
    skip: bool = False
    base: bool = False


@dataclass(frozen=True)
class Layout:
    """Names of an episode's datasets by what they are, and the shape of each but for the steps.

    `encoded` are cameras and depth whose rows are the bytes of an image, `arrays` the other cameras, `longer` what has
    one row more than the actions: the last one is not read.
    """

    kind: Kind
    action: Mapping[str, str]
    state: Mapping[str, str]
    cameras: Mapping[str, str]
    encoded: frozenset[str]
    arrays: Mapping[str, FrameArray]
    longer: frozenset[str]
    depth: Mapping[str, str]
    extras: Mapping[str, str]
    left_out: Mapping[str, str]
    """Why what is not read is not."""
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, group: h5py.Group, kind: Kind, choice: Choice, where: str) -> Layout:
        """The layout of the episode in `group`. Raises InputError when it has no actions or no state."""
        found = _datasets(group)
        names = own_names(found, PREFIXES)
        usual = _action(found, kind, choice, where)
        columns = {name: names[name] for name in sorted(found) if found[name].ndim in (1, 2)}
        action = select("action", usual, columns, where)
        steps = found[next(iter(action.values()))].shape[0]
        longer = frozenset(n for n, d in found.items() if d.shape[:1] == (steps + 1,) and n.startswith(OBSERVED))
        rows = {name for name, data in found.items() if data.shape[:1] == (steps,)} | longer
        encoded = frozenset(name for name in rows if is_encoded_image(found[name]))
        depth = {name for name in rows if "depth" in name.lower() and (name in encoded or _is_depth(found[name]))}
        arrays = {name: array for name in sorted(rows - depth - encoded) if (array := _frame_array(found[name], name))}
        pixels = arrays.keys() | (encoded - depth)
        cameras = {names[name]: name for name in sorted(pixels)}
        if choice.cameras is not None:
            cameras = select("cameras", choice.cameras, {name: short for short, name in cameras.items()}, where)
        short = {name.split("/")[-1]: name for name in sorted(depth)}
        paired = {camera: short[name] for camera, name in camera_of_depth(list(short), cameras).items()}
        numbers = {name for name in rows if found[name].dtype.kind in "biuf"} - encoded
        vectors = {name: names[name] for name in sorted(numbers) if found[name].ndim <= 2}
        state = select("state", _state(found, kind, where) if choice.state is None else choice.state, vectors, where)
        taken = {*action.values(), *cameras.values(), *paired.values(), *state.values()}
        kept = numbers - taken - pixels
        left_out = {name: "it has no number a step" for name in found if name not in taken | kept | pixels}
        left_out |= {name: "not among the chosen cameras" for name in pixels - taken}
        left_out |= {"next_obs": "it is obs one step later"} if "next_obs" in group else {}
        return cls(
            kind=kind,
            action=action,
            state=state,
            cameras=cameras,
            encoded=encoded & taken,
            arrays={name: array for name, array in arrays.items() if name in taken},
            longer=longer & (taken | kept),
            depth=paired,
            extras={names[name]: name for name in sorted(kept)},
            left_out=left_out,
            shapes={name: found[name].shape[1:] for name in sorted(taken | kept)},
        )

    @property
    def action_names(self) -> tuple[str, ...]:
        """The action's components; of ALOHA they are called as the state's, since they are the same joints."""
        called = {"action": "qpos", "actions": "qpos"} if self.kind == "aloha" and "qpos" in self.state else {}
        parts = ("action" if n == "actions" else n for n in (called.get(name, name) for name in self.action))
        return tuple(
            n
            for part, key in zip(parts, self.action.values(), strict=True)
            for n in component_names(part, self.shapes[key])
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(n for name, key in self.state.items() for n in component_names(name, self.shapes[key]))

    def read(self, group: h5py.Group, name: str) -> Shaped[np.ndarray, "t ..."]:
        return np.asarray(group[name][: len(group[name]) - (name in self.longer)])

    def check(self, group: h5py.Group, where: str) -> int:
        """The steps of the episode in `group`, which must be laid out like the first.

        Raises InputError naming the dataset that is missing, has another shape, or another number of rows than the
        actions have.
        """
        first = next(iter(self.action.values()))
        if first not in group:
            raise InputError(f"{where} has no dataset {first!r}")
        steps = int(group[first].shape[0])
        if not steps:
            raise InputError(f"{where} has no steps")
        for name, shape in self.shapes.items():
            if name not in group:
                raise InputError(f"{where} has no dataset {name!r}, which the first episode has")
            found = group[name].shape
            if found[:1] != (steps + (name in self.longer),):
                raise InputError(f"{where}: {name!r} has {found[0] if found else 'no'} rows for {steps} actions")
            if name not in self.encoded and found[1:] != shape:
                raise InputError(f"{where}: {name!r} has shape {found}, in the first episode {('t', *shape)}")
        return steps


def _datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    import h5py

    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("next_obs/"):
            found[name] = item

    group.visititems(visit)
    return found


def _frame_array(data: h5py.Dataset, name: str) -> FrameArray | None:
    return FrameArray.of(name, data.shape[1:], data.dtype, lambda: np.asarray(data[()]))


def _is_depth(data: h5py.Dataset) -> bool:
    single = data.ndim == 3 or (data.ndim == 4 and data.shape[3] == 1)
    return single and (data.dtype.kind == "f" or data.dtype == np.uint16)


def _action(found: Mapping[str, h5py.Dataset], kind: Kind, choice: Choice, where: str) -> Sequence[str]:
    if choice.action is not None:
        return choice.action
    action = next((name for name in ACTIONS[kind] if name in found), None)
    if action is None:
        raise InputError(
            f"{where} has no dataset {ACTIONS[kind][0]!r}: choose action=[...] and state=[...] from "
            f"{', '.join(found) or 'none'}"
        )
    return [action, BASE] if choice.base and BASE in found else [action]


def _state(found: Mapping[str, h5py.Dataset], kind: Kind, where: str) -> Sequence[str]:
    if not any(name.startswith(OBSERVED) for name in found):
        raise InputError(
            f"{where} has no observations, as what is recorded in simulation has none at first: robomimic's "
            f"dataset_states_to_obs.py and LIBERO's create_dataset.py make them; it has {', '.join(found)}"
        )
    if kind == "aloha":
        wanted: Sequence[str] = ("observations/qpos",)
    elif kind == "libero" and (pose := next((names for names in LIBERO_POSES if set(names) <= found.keys()), None)):
        wanted = (*pose, "obs/gripper_states")
    else:
        robots = sorted({name.split("_")[0] for name in found if name.startswith("obs/robot")})
        wanted = [f"{robot}_{key}" for robot in robots for key in ROBOT_STATE]
    state = [name for name in wanted if name in found]
    if not state and kind == "robomimic":
        state = [n for n in found if n.startswith("obs/") and found[n].ndim == 2 and found[n].dtype.kind == "f"]
    if not state:
        named = " nor ".join(wanted) or "observations"
        raise InputError(f"{where} has no {named}: choose the state from {', '.join(found)}")
    return state
