"""`vla data derive`: makes a store with end-effector actions, by forward kinematics of the joints of another store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from tqdm import tqdm

from vla.common.kinematic_chain import Tool, ToolKinematics, chain_joints, extract_chain
from vla.common.rotations import components_of
from vla.common.statistics import check_finite
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.atomic_store import atomic_create
from vla.embodiment import Embodiment, Rotation
from vla.errors import InputError
from vla.kinematics.joint_map import match_joints
from vla.kinematics.tool_pose import ToolPose, component_names

END_EFFECTOR = "ee"
ROTATIONS = {"6d": "rotation_6d", "quaternion": "quaternion_wxyz"}
"""Short names of representations, in addition to those of `vla.common.rotations`."""
COMPONENT_NAMES = {
    "rotation_6d": tuple(f"rotation_6d_{i}" for i in range(1, 7)),
    "axis_angle": tuple(f"axis_angle_{axis} [rad]" for axis in "xyz"),
    "quaternion_wxyz": tuple(f"quaternion_{name}" for name in "wxyz"),
    "quaternion_xyzw": tuple(f"quaternion_{name}" for name in "xyzw"),
}


def derive(
    path: str,
    *,
    out: str,
    actions: str,
    model: str,
    tool: str | Sequence[str],
    rotation: str = "6d",
    joints: Mapping[str, Any] | None = None,
    units: str | None = None,
    keep_joints: bool = True,
) -> None:
    """Makes a store with end-effector actions from the store at `path`, without re-encoding images.

    The pose of each tool at the measured joints is added to the state. The action is the absolute pose of each tool at
    the commanded joints, followed by the components that do not move a tool, such as the gripper, unchanged.

    Args:
        path: The source store.
        out: The new store.
        actions: "ee".
        model: The kinematic model (`vla.envs.robot_models`).
        tool: Site or body of the model, or several.
        rotation: Representation of rotations.
        joints: Component of each joint (`vla.kinematics.joint_map`).
        units: Unit of components whose name has none.
        keep_joints: Whether the state keeps the joints; without them a policy can run on other arms.

    Raises:
        InputError: A tool, joint or component does not exist, or a component is not a joint with a known unit. Nothing
            is written.
    """
    if actions != END_EFFECTOR:
        raise InputError(f"actions={actions}: vla data derive makes end-effector actions, actions={END_EFFECTOR}")
    frames = (tool,) if isinstance(tool, str) else tuple(tool)
    representation = ROTATIONS.get(rotation, rotation)
    components_of(representation)
    with EpisodeStore.open(path) as source:
        if not len(source):
            raise InputError(f"{path} holds no episodes")
        if not source.declares_actions:
            raise InputError(f"{path} does not declare its action modes: vla data migrate {path}")
        kinematics = tool_kinematics(source.embodiment, model, frames, representation, joints, units)
        derived = _Derived(source.embodiment, kinematics, representation, keep_joints)
        episodes = range(len(source))
        # Two passes with constant memory: the metadata of the store needs the range of the poses first.
        computed = (derived.rows(source, index)[1] for index in tqdm(episodes, desc="kinematics", leave=False))
        body = derived.with_limits([(action.min(axis=0), action.max(axis=0)) for action in computed])
        provenance = {**source.provenance, "derived": {"actions": actions, "model": model, "tool": list(frames)}}
        with atomic_create(out) as new, EpisodeStore.create(new, body, source.codec, provenance) as target:
            for index in tqdm(episodes, desc=f"copy {path}", unit="episode", leave=False):
                state, action = derived.rows(source, index)
                _append(target, source, index, {"state": state, "action": action})
        chunks = any("chunks" in record.streams for record in source.records)
    print(f"{out}: {len(episodes)} episodes with the pose of {', '.join(frames)} as {representation}, by {model}")
    print("joints: " + ", ".join(f"{joint.component} is {joint.joint}" for joint in kinematics.joints))
    print(f"unchanged action components: {', '.join(derived.passed) or 'none'}")
    if chunks:
        print("recorded action chunks are omitted, because they are joint targets")


def tool_kinematics(
    body: Embodiment,
    model: str,
    frames: Sequence[str],
    representation: str,
    joints: Mapping[str, Any] | None,
    units: str | None,
) -> ToolKinematics:
    """The kinematics of the tools `frames` of a model, with the joints of `body` (`vla.kinematics.joint_map`)."""
    from vla.envs.robot_models import load_robot_model

    if not frames or len(set(frames)) < len(frames):
        raise InputError("tool must be one frame of the model, or several different ones")
    mjcf = extract_chain(load_robot_model(model), frames)
    unit = "deg" if representation.endswith("_deg") else "rad"
    default = tuple(f"{representation}_{i} [{unit}]" for i in range(1, 4))
    rotation = COMPONENT_NAMES.get(representation, default)
    tools = tuple(
        Tool(
            frame,
            component_names(frame, ("x [m]", "y [m]", "z [m]"), len(frames) == 1),
            component_names(frame, rotation, len(frames) == 1),
        )
        for frame in frames
    )
    return ToolKinematics(model, mjcf, tools, match_joints(body, chain_joints(mjcf), joints, units))


def _append(target: EpisodeStore, source: EpisodeStore, index: int, rows: Mapping[str, np.ndarray]) -> None:
    """Appends episode `index` of `source` with new `rows`, without re-encoding its images.

    Recorded chunks are omitted, because they have the old actions. Raises InputError if the episode is damaged.
    """
    # The store's own copy methods require the same embodiment.
    record = source.records[index]
    streams = tuple(name for name in record.streams if name != "chunks")
    content = source.stored(index) | {kind: [np.asarray(values, "<f8")] for kind, values in rows.items()}
    content.pop("chunks", None)
    shapes = {name: shape for name, shape in source.shapes.items() if name in content and name not in rows}
    target.append_stored(content, replace(record, streams=streams), shapes)


class _Derived:
    """The embodiment with tool poses, and its states and actions.

    `passed` names the action components that are passed through unchanged.
    """

    def __init__(self, body: Embodiment, kinematics: ToolKinematics, representation: str, keep_joints: bool) -> None:
        from vla.kinematics.arm import ArmKinematics

        self._arm = ArmKinematics(body, kinematics)
        joints = {joint.component for joint in kinematics.joints}
        pose = tuple(name for tool in kinematics.tools for name in (*tool.position, *tool.rotation))
        if duplicates := set(pose) & {*body.state, *body.action}:
            raise InputError(f"embodiment {body.name} has a component {min(duplicates)} already")
        self.passed = tuple(name for name in body.action if name not in joints)
        self._action_indices = [body.action.index(name) for name in self.passed]
        measuring = {body.measured_by[body.action.index(name)] for name in joints}
        self._state_indices = [i for i in range(len(body.state)) if keep_joints or i not in measuring]
        state, action = (*(body.state[i] for i in self._state_indices), *pose), (*pose, *self.passed)

        def extend(values: Sequence[Any], pose_value: Any) -> tuple[Any, ...]:
            return (*[pose_value] * len(pose), *(values[i] for i in self._action_indices))

        rotations = [
            Rotation(
                tuple(action.index(name) for name in tool.rotation),
                representation,
                tuple(state.index(name) for name in tool.rotation),
            )
            for tool in kinematics.tools
        ]
        for rotation in body.rotations:
            if {body.action[i] for i in rotation.action} <= set(self.passed):
                action_indices = tuple(action.index(body.action[i]) for i in rotation.action)
                state_indices = tuple(state.index(body.state[i]) for i in rotation.state)
                rotations.append(replace(rotation, action=action_indices, state=state_indices))
        self._body = Embodiment(
            name=body.name,
            cameras=body.cameras,
            state=state,
            action=action,
            action_low=extend(body.action_low, 0.0),
            action_high=extend(body.action_high, 0.0),
            control_hz=body.control_hz,
            action_mode=extend(body.action_mode, "absolute"),
            action_state=(*pose, *(body.action_state[i] for i in self._action_indices)),
            action_turn=extend(body.action_turn, 0.0),
            grippers=tuple(name for name in body.grippers if name in self.passed),
            rotations=tuple(rotations),
            kinematics=kinematics,
        )
        self._poses = [ToolPose.of(self._body, tool) for tool in kinematics.tools]

    def rows(self, source: EpisodeStore, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """States and actions of an episode. Raises InputError for values that are not finite."""
        frames = source.records[index].frames
        state, action = (np.asarray(source.rows(kind)[frames]) for kind in ("state", "action"))
        for kind, values in (("state", state), ("action", action)):
            check_finite(values, getattr(source.embodiment, kind), f"{kind} of episode {index} of {source.path}")
        measured, commanded = self._arm.measured(state), self._arm.commanded(action)
        states = np.empty((len(state), len(self._body.state)))
        states[:, : len(self._state_indices)] = state[:, self._state_indices]
        actions = np.empty((len(action), len(self._body.action)))
        actions[:, len(actions[0]) - len(self._action_indices) :] = action[:, self._action_indices]
        for i, pose in enumerate(self._poses):
            pose.write_state(states, measured[:, i])
            pose.write_actions(actions, commanded[:, i], measured[0, i])
        return states, actions

    def with_limits(self, ranges: Sequence[tuple[Float[np.ndarray, "a"], Float[np.ndarray, "a"]]]) -> Embodiment:
        """The embodiment with the extremes of the poses as their limits; other components keep their limits."""
        low, high = np.min([low for low, _ in ranges], axis=0), np.max([high for _, high in ranges], axis=0)
        poses = len(low) - len(self.passed)
        return replace(
            self._body,
            action_low=(*low[:poses].tolist(), *self._body.action_low[poses:]),
            action_high=(*high[:poses].tolist(), *self._body.action_high[poses:]),
        )
