"""Which dataset of an HDF5 demonstration is what: action, state, cameras, depth or an extra (see `hdf5`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from vla.datasets.formats.columns import own_names, select
from vla.datasets.formats.image_columns import camera_of_depth
from vla.errors import InputError

if TYPE_CHECKING:
    import h5py

Kind = Literal["robomimic", "libero", "aloha"]
ACTION = {"robomimic": "actions", "libero": "actions", "aloha": "action"}
ROBOT_STATE = ("eef_pos", "eef_quat", "gripper_qpos")
IMAGES = "observations/images/"


@dataclass(frozen=True)
class Layout:
    """Names of an episode's datasets by what they are, and the shape of each but for the steps.

    `encoded` are cameras whose rows are the bytes of an image.
    """

    kind: Kind
    action: str
    state: Mapping[str, str]
    cameras: Mapping[str, str]
    encoded: frozenset[str]
    depth: Mapping[str, str]
    extras: Mapping[str, str]
    left_out: Mapping[str, str]
    """Why what is not read is not."""
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, group: h5py.Group, kind: Kind, wanted: Sequence[str] | None, where: str) -> Layout:
        """The layout of the episode in `group`; `wanted` are the names of its state, None for the usual ones.

        Raises InputError when it has no actions or no state.
        """
        found = _datasets(group)
        action = ACTION[kind]
        if action not in found:
            raise InputError(f"{where} has no dataset {action!r}: it has {', '.join(found) or 'none'}")
        steps = found[action].shape[0]
        encoded = frozenset(name for name, data in found.items() if kind == "aloha" and _is_encoded(name, data))
        pixels = {name for name, data in found.items() if _is_video(data)} | encoded
        names = own_names(found, ("observations/images/", "observations/", "obs/"))
        cameras = {names[name]: name for name in sorted(pixels)}
        maps = [name for name, data in found.items() if name.endswith("depth") and _is_depth(data)]
        paired = camera_of_depth([names[name] for name in maps], cameras)
        depth = {camera: next(n for n in maps if names[n] == short) for camera, short in paired.items()}
        numbers = {name for name, data in found.items() if data.shape[:1] == (steps,) and data.dtype.kind in "biuf"}
        vectors = {name: names[name] for name in sorted(numbers) if found[name].ndim <= 2 and name not in encoded}
        usual = _state(found, kind, where) if wanted is None else wanted
        state = select("state", usual, vectors, where)
        taken = {action, *pixels, *depth.values(), *state.values()}
        kept = numbers - taken
        return cls(
            kind=kind,
            action=action,
            state=state,
            cameras=cameras,
            encoded=encoded,
            depth=depth,
            extras={names[name]: name for name in sorted(kept)},
            left_out={name: "it has no number a step" for name in found if name not in taken | kept}
            | ({"next_obs": "it is obs one step later"} if "next_obs" in group else {}),
            shapes={name: found[name].shape[1:] for name in sorted(taken | kept)},
        )

    @property
    def action_name(self) -> str:
        """What the action's components are called: as the state's, where they are the same joints."""
        return "qpos" if self.kind == "aloha" else "action"

    def check(self, group: h5py.Group, where: str) -> int:
        """The steps of the episode in `group`, which must be laid out like the first.

        Raises InputError naming the dataset that is missing, has another shape, or another number of rows than the
        actions have.
        """
        if self.action not in group:
            raise InputError(f"{where} has no dataset {self.action!r}")
        steps = group[self.action].shape[0]
        for name, shape in self.shapes.items():
            if name not in group:
                raise InputError(f"{where} has no dataset {name!r}, which the first episode has")
            found = group[name].shape
            if found[:1] != (steps,):
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


def _is_video(data: h5py.Dataset) -> bool:
    return data.ndim == 4 and data.shape[3] == 3 and data.dtype == np.uint8


def _is_depth(data: h5py.Dataset) -> bool:
    single = data.ndim == 3 or (data.ndim == 4 and data.shape[3] == 1)
    return single and (data.dtype.kind == "f" or data.dtype == np.uint16)


def _is_encoded(name: str, data: h5py.Dataset) -> bool:
    """Rows of bytes, filled up with zeros; or byte strings, of one length or of their own."""
    rows = data.ndim == 2 and data.dtype == np.uint8
    return name.startswith(IMAGES) and (rows or (data.ndim == 1 and data.dtype.kind in "SO"))


def _state(found: Mapping[str, h5py.Dataset], kind: Kind, where: str) -> Sequence[str]:
    if kind == "aloha":
        wanted: Sequence[str] = ("observations/qpos",)
    elif kind == "libero":
        pose = ("obs/ee_pos", "obs/ee_ori")
        wanted = (*(pose if set(pose) <= found.keys() else ("obs/ee_states",)), "obs/gripper_states")
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
