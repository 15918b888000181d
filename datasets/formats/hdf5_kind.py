"""The kind of an HDF5 file of demonstrations: its layout, its episodes, and its attributes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from vla.datasets.formats.columns import natural_order
from vla.errors import InputError

if TYPE_CHECKING:
    import h5py

Kind = Literal["robomimic", "libero", "aloha"]
KINDS: tuple[Kind, ...] = get_args(Kind)
ACTIONS: Mapping[Kind, Sequence[str]] = {
    "robomimic": ("actions", "action"),
    "libero": ("actions", "action"),
    "aloha": ("action", "actions"),
}
"""Names of the dataset with the actions."""
USUAL_HZ: Mapping[Kind, float] = {"aloha": 50.0, "libero": 20.0}
"""Default control rates [Hz]: ALOHA's DT of 0.02 s, and the control_freq of LIBERO's create_dataset.py."""
LIBERO_CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
LIBERO_STATES = ("ee_states", "ee_pos", "joint_states", "gripper_states")
BASE = "base_action"
"""The actions of Mobile ALOHA's base: linear and angular velocity."""
ALOHA_ARM = 7
"""Joints of an arm, with the gripper as the last one."""
OSC_POSE = 7
"""Components of an arm's action: a position delta, a rotation delta, and the gripper."""
RATES = ("fps", "control_freq", "frequency", "hz")
TEXTS = ("language_instruction", "instruction", "language_raw", "lang", "task_description", "task")
"""Attributes, or datasets of one text, with the instruction."""


def episode_groups(file: h5py.File, path: Path) -> list[str]:
    """The names of the groups that are episodes, in natural order.

    They are the children of `data` if that group exists; otherwise the file itself if it has actions or observations;
    otherwise its groups that have. Raises InputError if there are none.
    """
    import h5py

    if isinstance(file.get("data"), h5py.Group):
        names = [f"data/{name}" for name, item in file["data"].items() if isinstance(item, h5py.Group)]
        if not names:
            raise InputError(f"{path} has no demonstrations in its group 'data'")
    elif _is_episode(file):
        return ["/"]
    else:
        names = [name for name, item in file.items() if isinstance(item, h5py.Group) and _is_episode(item)]
    if not names:
        raise InputError(
            f"{path} holds {', '.join(file) or 'nothing'}: robomimic and LIBERO files have a group 'data', ALOHA files "
            "a group 'observations'"
        )
    return sorted(names, key=natural_order)


def _is_episode(group: h5py.Group) -> bool:
    members = {"observations", "obs", *(name for names in ACTIONS.values() for name in names)}
    return bool(members & set(group))


def kind_of(file: h5py.File, group: h5py.Group) -> tuple[Kind, str]:
    """The layout of an episode, and the evidence if the file's attributes do not state it."""
    if states_libero(file):
        return "libero", ""
    if "observations" in group:
        return "aloha", ""
    observations = group.get("obs", ())
    cameras = [f"obs/{name}" for name in LIBERO_CAMERAS if name in observations]
    states = [f"obs/{name}" for name in LIBERO_STATES if name in observations]
    if cameras and states:
        return "libero", f"{cameras[0]} and {states[0]}"
    return "robomimic", ""


def states_libero(file: h5py.File) -> bool:
    """Whether the file has an attribute that only LIBERO writes. Files that were replayed and rewritten lack it."""
    return "data" in file and "problem_info" in file["data"].attrs


def upside_down(file: h5py.File, kind: Kind) -> bool:
    """Whether images are stored from the bottom row up: in LIBERO, unless robosuite uses OpenCV's convention."""
    attributes = file["data"].attrs if "data" in file else {}
    return kind == "libero" and _text(attributes.get("macros_image_convention")) != "opencv"


def environment(file: h5py.File, path: Path) -> Mapping[str, Any]:
    """The attribute env_args of robomimic, LIBERO and Isaac Lab; empty if there is none."""
    return json_attribute(file["data"], "env_args", path) if "data" in file else {}


def stated_actions(
    kind: Kind, env: Mapping[str, Any], action: Sequence[str]
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The origin of the statement on the action modes, the modes, and the grippers; all empty if nothing is stated.

    ALOHA's actions are the joint positions of the leader arms, with the gripper as the last joint of each arm. The
    actions of Mobile ALOHA's base are velocities.
    """
    if has_pose_deltas(kind, env, len(action)):
        modes = (*("delta",) * (OSC_POSE - 1), "absolute") * (len(action) // OSC_POSE)
        return "deltas of robosuite's controller OSC_POSE", modes, tuple(action[OSC_POSE - 1 :: OSC_POSE])
    joints = [name for name in action if not name.startswith(BASE)]
    if kind != "aloha" or not all(name.startswith("qpos") for name in joints):
        return "", (), ()
    modes = tuple("absolute" if name in joints else "velocity" for name in action)
    grippers = joints[ALOHA_ARM - 1 :: ALOHA_ARM] if len(joints) % ALOHA_ARM == 0 else []
    return "joint positions of ALOHA's leaders", modes, tuple(grippers)


def has_pose_deltas(kind: Kind, env: Mapping[str, Any], components: int) -> bool:
    """Whether the file states that its actions are deltas of robosuite's OSC_POSE: six for the pose, one gripper.

    This is the case for LIBERO, and for robomimic if the controller in env_args is set to deltas (`control_delta`;
    since robosuite 1.5 `input_type`). The controller's `output_max` is the scale of the deltas.
    """
    settings = env.get("env_kwargs")
    controller = settings.get("controller_configs") if isinstance(settings, dict) else None
    body_parts = controller.get("body_parts", {"arm": controller}) if isinstance(controller, dict) else {}
    arms = [p for p in body_parts.values() if isinstance(p, dict) and str(p.get("type", "")).startswith("OSC")]
    poses = [p.get("type") == "OSC_POSE" for p in arms]
    steps = [p.get("control_delta", p.get("input_type", "delta") == "delta") is True for p in arms]
    stated = bool(arms) and all(poses) and all(steps)
    return components % OSC_POSE == 0 and (stated or (kind == "libero" and not arms))


def stated_rate(file: h5py.File, env: Mapping[str, Any]) -> Any:
    """The control rate [Hz] that a file states; None if it does not."""
    settings, simulation = env.get("env_kwargs"), env.get("sim_args")
    if isinstance(settings, dict) and settings.get("control_freq"):
        return settings["control_freq"]
    # Isaac Lab: the duration of a simulation step [s], and the number of simulation steps per control step.
    if isinstance(simulation, dict) and simulation.get("dt") and simulation.get("decimation"):
        return 1 / (float(simulation["dt"]) * float(simulation["decimation"]))
    for attributes in (file.attrs, file["data"].attrs if "data" in file else {}):
        for name in RATES:
            if name in attributes:
                return attributes[name]
    return None


def instruction_of(file: h5py.File, group: h5py.Group, kind: Kind, path: Path) -> str:
    """The instruction of an episode; empty if none is stated."""
    if kind == "libero":
        if not states_libero(file):
            return name_as_words(path)
        # Some files have the sentence, others a list of its pieces.
        return "".join(map(str, json_attribute(file["data"], "problem_info", path).get("language_instruction", "")))
    stated = next(_stated_texts((group, file)), "")
    if kind == "aloha" or stated:
        return stated
    # robosuite's environments are named like classes: PickPlaceCan.
    name = str(environment(file, path).get("env_name", ""))
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return str(json_attribute(group, "ep_meta", path).get("lang") or words)


def name_as_words(path: Path) -> str:
    """The instruction in the name of one of LIBERO's files: `KITCHEN_SCENE3_turn_on_the_stove_demo.hdf5`.

    Names of LIBERO-100 begin with the scene, in capitals (`grab_language_from_filename` of LIBERO's benchmark).
    """
    words = path.stem.removesuffix("_demo")
    scene = re.match(r"[A-Z].*?SCENE\d+_", words)
    return words[scene.end() if scene else 0 :].replace("_", " ").strip()


def _stated_texts(groups: Iterable[h5py.Group]) -> Iterator[str]:
    import h5py

    for group in groups:
        for name in TEXTS:
            value = group.attrs.get(name)
            item = group.get(name)
            if value is None and isinstance(item, h5py.Dataset) and item.size == 1 and item.dtype.kind in "SO":
                value = item[()]
            # A text may also be stored as an array of one.
            if text := _text(value.flat[0] if isinstance(value, np.ndarray) and value.size == 1 else value):
                yield text


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def json_attribute(group: h5py.Group, name: str, path: Path) -> Mapping[str, Any]:
    """The JSON object in the attribute `name`; empty if there is none. Raises InputError if it is not JSON."""
    try:
        values = json.loads(group.attrs.get(name, "{}"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: attribute {name} of {group.name} is not JSON: {error}") from error
    return values if isinstance(values, dict) else {}
