"""What an HDF5 file of demonstrations is: its layout, where its episodes are, and what its attributes say."""

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
"""What the dataset of the actions is called."""
USUAL_HZ: Mapping[Kind, float] = {"aloha": 50.0, "libero": 20.0}
"""Steps a second of what records them: ALOHA's DT of 0.02 s, and the control_freq of LIBERO's create_dataset.py."""
LIBERO_CAMERAS = ("agentview_rgb", "eye_in_hand_rgb")
LIBERO_STATES = ("ee_states", "ee_pos", "joint_states", "gripper_states")
BASE = "base_action"
"""What Mobile ALOHA's base does beside the arms: linear and angular velocity."""
ALOHA_ARM = 7
"""Joints of an arm, the last its gripper."""
OSC_POSE = 7
"""Components of an arm's action: a step of the position, one of the rotation, and the gripper."""
RATES = ("fps", "control_freq", "frequency", "hz")
TEXTS = ("language_instruction", "instruction", "language_raw", "lang", "task_description", "task")
"""Attributes, or datasets of one text, that say what is done."""


def episode_groups(file: h5py.File, path: Path) -> list[str]:
    """The names of the groups that are one episode each, in natural order.

    The children of `data`, where there is such a group; else the file itself where it has actions or observations;
    else its groups that have. Raises InputError where there are none.
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
    known = {"observations", "obs", *(name for names in ACTIONS.values() for name in names)}
    return bool(known & set(group))


def kind_of(file: h5py.File, group: h5py.Group) -> tuple[Kind, str]:
    """The layout of an episode, and what it was told by where the file's attributes do not state it."""
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
    """Whether an attribute that LIBERO alone writes is there; files that were replayed and written anew have none."""
    return "data" in file and "problem_info" in file["data"].attrs


def upside_down(file: h5py.File, kind: Kind) -> bool:
    """Whether images are stored from the bottom row up: LIBERO's, unless robosuite was set to OpenCV's convention."""
    attributes = file["data"].attrs if "data" in file else {}
    return kind == "libero" and _text(attributes.get("macros_image_convention")) != "opencv"


def environment(file: h5py.File, path: Path) -> Mapping[str, Any]:
    """The attribute env_args of robomimic, LIBERO and Isaac Lab; empty where there is none."""
    return json_attribute(file["data"], "env_args", path) if "data" in file else {}


def stated_actions(
    kind: Kind, env: Mapping[str, Any], action: Sequence[str]
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Where it is stated what the actions are, their modes, and the grippers; nothing where it is not.

    ALOHA's are the joint positions of the leaders, each arm's last one its gripper, and Mobile ALOHA's base is told
    velocities.
    """
    if takes_steps(kind, env, len(action)):
        modes = (*("delta",) * (OSC_POSE - 1), "absolute") * (len(action) // OSC_POSE)
        return "steps of robosuite's controller OSC_POSE", modes, tuple(action[OSC_POSE - 1 :: OSC_POSE])
    joints = [name for name in action if not name.startswith(BASE)]
    if kind != "aloha" or not all(name.startswith("qpos") for name in joints):
        return "", (), ()
    modes = tuple("absolute" if name in joints else "velocity" for name in action)
    grippers = joints[ALOHA_ARM - 1 :: ALOHA_ARM] if len(joints) % ALOHA_ARM == 0 else []
    return "joint positions of ALOHA's leaders", modes, tuple(grippers)


def takes_steps(kind: Kind, env: Mapping[str, Any], components: int) -> bool:
    """Whether the file states that its actions are steps of robosuite's OSC_POSE: six of the pose, one of the gripper.

    LIBERO's are, and robomimic's where the controller in env_args is set to them (`control_delta`; since robosuite 1.5
    `input_type`). What one of them moves is the controller's `output_max`.
    """
    settings = env.get("env_kwargs")
    controller = settings.get("controller_configs") if isinstance(settings, dict) else None
    parts = controller.get("body_parts", {"arm": controller}) if isinstance(controller, dict) else {}
    arms = [p for p in parts.values() if isinstance(p, dict) and str(p.get("type", "")).startswith("OSC")]
    poses = [p.get("type") == "OSC_POSE" for p in arms]
    steps = [p.get("control_delta", p.get("input_type", "delta") == "delta") is True for p in arms]
    stated = bool(arms) and all(poses) and all(steps)
    return components % OSC_POSE == 0 and (stated or (kind == "libero" and not arms))


def stated_rate(file: h5py.File, env: Mapping[str, Any]) -> Any:
    """The steps a second [Hz] that a file states; None where it does not."""
    settings, simulation = env.get("env_kwargs"), env.get("sim_args")
    if isinstance(settings, dict) and settings.get("control_freq"):
        return settings["control_freq"]
    # Isaac Lab: seconds of a simulation step, and how many of them a control step has.
    if isinstance(simulation, dict) and simulation.get("dt") and simulation.get("decimation"):
        return 1 / (float(simulation["dt"]) * float(simulation["decimation"]))
    for attributes in (file.attrs, file["data"].attrs if "data" in file else {}):
        for name in RATES:
            if name in attributes:
                return attributes[name]
    return None


def instruction_of(file: h5py.File, group: h5py.Group, kind: Kind, path: Path) -> str:
    """What is done in an episode; empty where nothing says it."""
    if kind == "libero":
        if not states_libero(file):
            return name_as_words(path)
        # Some files hold the sentence, some a list of its parts.
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


def _stated_texts(places: Iterable[h5py.Group]) -> Iterator[str]:
    import h5py

    for place in places:
        for name in TEXTS:
            found = place.attrs.get(name)
            item = place.get(name)
            if found is None and isinstance(item, h5py.Dataset) and item.size == 1 and item.dtype.kind in "SO":
                found = item[()]
            # One text is also kept as an array of one.
            if text := _text(found.flat[0] if isinstance(found, np.ndarray) and found.size == 1 else found):
                yield text


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value if isinstance(value, str) else ""


def json_attribute(group: h5py.Group, name: str, path: Path) -> Mapping[str, Any]:
    """The JSON object in the attribute `name`; empty where there is none. Raises InputError where it is no JSON."""
    try:
        values = json.loads(group.attrs.get(name, "{}"))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: attribute {name} of {group.name} is not JSON: {error}") from error
    return values if isinstance(values, dict) else {}
