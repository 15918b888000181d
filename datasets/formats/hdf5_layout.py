"""Assigns the datasets of an HDF5 demonstration to roles: action, state, camera, depth or extra (see `hdf5`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from vla.datasets.formats.columns import component_names, select, short_names
from vla.datasets.formats.hdf5_kind import ACTIONS, BASE, TEXTS, Kind
from vla.datasets.formats.image_columns import FrameArray, camera_of_depth, is_encoded_image
from vla.errors import InputError

if TYPE_CHECKING:
    import h5py

LIBERO_POSES = (("obs/ee_pos", "obs/ee_ori"), ("obs/ee_states",), ("obs/joint_states",))
"""The first components of LIBERO's state: the first of these that exists. Files may also have robosuite's names."""
ROBOT_STATE = ("eef_pos", "eef_quat", "gripper_qpos")
PREFIXES = ("observations/images/", "observations/rgb_images/", "observations/", "obs/")
OBSERVED = ("observations/", "obs/", "env_states/")
"""Groups that may have one more row than the actions, the last observation, as in ManiSkill's files."""


@dataclass(frozen=True)
class Choice:
    """The user's choice (see `hdf5.open_source`); None: the usual one. `base`: whether the mobile base ever moves."""

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
    """The datasets of each role in an episode, and the shape of a row of each.

    `encoded` are cameras and depth with rows of encoded images, `arrays` the other cameras. `longer` are datasets with
    one row more than the actions, whose last row is not read.
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
    """The reason for each dataset that is not read."""
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, group: h5py.Group, kind: Kind, choice: Choice, where: str) -> Layout:
        """The layout of the episode in `group`. Raises InputError if it has no actions or no state."""
        datasets = _datasets(group)
        names = short_names(datasets, PREFIXES)
        usual = _action(datasets, kind, choice, where)
        columns = {name: names[name] for name in sorted(datasets) if datasets[name].ndim in (1, 2)}
        action = select("action", usual, columns, where)
        steps = datasets[next(iter(action.values()))].shape[0]
        longer = frozenset(n for n, d in datasets.items() if d.shape[:1] == (steps + 1,) and n.startswith(OBSERVED))
        rows = {name for name, data in datasets.items() if data.shape[:1] == (steps,)} | longer
        encoded = frozenset(name for name in rows if is_encoded_image(datasets[name]))
        depth = {name for name in rows if "depth" in name.lower() and (name in encoded or _is_depth(datasets[name]))}
        arrays = {
            name: array for name in sorted(rows - depth - encoded) if (array := _frame_array(datasets[name], name))
        }
        pixels = arrays.keys() | (encoded - depth)
        cameras = {names[name]: name for name in sorted(pixels)}
        if choice.cameras is not None:
            cameras = select("cameras", choice.cameras, {name: short for short, name in cameras.items()}, where)
        short = {name.split("/")[-1]: name for name in sorted(depth)}
        paired = {camera: short[name] for camera, name in camera_of_depth(list(short), cameras).items()}
        numbers = {name for name in rows if datasets[name].dtype.kind in "biuf"} - encoded
        vectors = {name: names[name] for name in sorted(numbers) if datasets[name].ndim <= 2}
        state = select("state", _state(datasets, kind, where) if choice.state is None else choice.state, vectors, where)
        used = {*action.values(), *cameras.values(), *paired.values(), *state.values()}
        remaining = numbers - used - pixels
        read = used | remaining | pixels | {next((name for name in TEXTS if name in datasets), "")}
        left_out = {name: "it has no number a step" for name in datasets if name not in read}
        left_out |= {name: "not among the chosen cameras" for name in pixels - used}
        left_out |= {"next_obs": "it is obs one step later"} if "next_obs" in group else {}
        return cls(
            kind=kind,
            action=action,
            state=state,
            cameras=cameras,
            encoded=encoded & used,
            arrays={name: array for name, array in arrays.items() if name in used},
            longer=longer & (used | remaining),
            depth=paired,
            extras={names[name]: name for name in sorted(remaining)},
            left_out=left_out,
            shapes={name: datasets[name].shape[1:] for name in sorted(used | remaining)},
        )

    @property
    def action_names(self) -> tuple[str, ...]:
        """The action's components. Those of ALOHA have the state's names, since they are the same joints."""
        renamed = {"action": "qpos", "actions": "qpos"} if self.kind == "aloha" and "qpos" in self.state else {}
        columns = ("action" if n == "actions" else n for n in (renamed.get(name, name) for name in self.action))
        return tuple(
            n
            for column, key in zip(columns, self.action.values(), strict=True)
            for n in component_names(column, self.shapes[key])
        )

    @property
    def state_names(self) -> tuple[str, ...]:
        """The state's components."""
        return tuple(n for name, key in self.state.items() for n in component_names(name, self.shapes[key]))

    def read(self, group: h5py.Group, name: str) -> Shaped[np.ndarray, "t ..."]:
        """The rows of a dataset, one per action."""
        return np.asarray(group[name][: len(group[name]) - (name in self.longer)])

    def check(self, group: h5py.Group, where: str) -> int:
        """The number of steps of the episode in `group`, which must have the layout of the first one.

        Raises InputError that names a dataset that is missing, or has another shape or number of rows.
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
            actual = group[name].shape
            if actual[:1] != (steps + (name in self.longer),):
                raise InputError(f"{where}: {name!r} has {actual[0] if actual else 'no'} rows for {steps} actions")
            if name not in self.encoded and actual[1:] != shape:
                raise InputError(f"{where}: {name!r} has shape {actual}, in the first episode {('t', *shape)}")
        return steps


def _datasets(group: h5py.Group) -> dict[str, h5py.Dataset]:
    import h5py

    datasets: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: h5py.Dataset | h5py.Group) -> None:
        if isinstance(item, h5py.Dataset) and not name.startswith("next_obs/"):
            datasets[name] = item

    group.visititems(visit)
    return datasets


def _frame_array(data: h5py.Dataset, name: str) -> FrameArray | None:
    return FrameArray.of(name, data.shape[1:], data.dtype, lambda: np.asarray(data[()]))


def _is_depth(data: h5py.Dataset) -> bool:
    single = data.ndim == 3 or (data.ndim == 4 and data.shape[3] == 1)
    return single and (data.dtype.kind == "f" or data.dtype == np.uint16)


def _action(datasets: Mapping[str, h5py.Dataset], kind: Kind, choice: Choice, where: str) -> Sequence[str]:
    if choice.action is not None:
        return choice.action
    action = next((name for name in ACTIONS[kind] if name in datasets), None)
    if action is None:
        raise InputError(
            f"{where} has no dataset {ACTIONS[kind][0]!r}: choose action=[...] and state=[...] from "
            f"{', '.join(datasets) or 'none'}"
        )
    return [action, BASE] if choice.base and BASE in datasets else [action]


def _state(datasets: Mapping[str, h5py.Dataset], kind: Kind, where: str) -> Sequence[str]:
    if not any(name.startswith(OBSERVED) for name in datasets):
        raise InputError(
            f"{where} has no observations: robomimic's dataset_states_to_obs.py and LIBERO's create_dataset.py "
            f"render them from recorded simulation states; it has {', '.join(datasets)}"
        )
    if kind == "aloha":
        usual: Sequence[str] = ("observations/qpos",)
    elif kind == "libero" and (pose := next((names for names in LIBERO_POSES if set(names) <= datasets.keys()), None)):
        usual = (*pose, "obs/gripper_states")
    else:
        robots = sorted({name.split("_")[0] for name in datasets if name.startswith("obs/robot")})
        usual = [f"{robot}_{key}" for robot in robots for key in ROBOT_STATE]
    state = [name for name in usual if name in datasets]
    if not state and kind == "robomimic":
        state = [
            n for n in datasets if n.startswith("obs/") and datasets[n].ndim == 2 and datasets[n].dtype.kind == "f"
        ]
    if not state:
        missing = " nor ".join(usual) or "observations"
        raise InputError(f"{where} has no {missing}: choose the state from {', '.join(datasets)}")
    return state
