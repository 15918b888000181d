"""`vla data derive`: a new store whose states and actions are computed from those of another."""

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
from vla.datasets.tools.atomic_store import appearing
from vla.embodiment import Embodiment, Rotation
from vla.errors import InputError
from vla.kinematics.joint_map import match_joints
from vla.kinematics.tool_pose import ToolPose, component_names

END_EFFECTOR = "ee"
ROTATIONS = {"6d": "rotation_6d", "quaternion": "quaternion_wxyz"}
"""Short names of representations, beside those of `vla.embodiment`."""
PARTS = {
    "rotation_6d": tuple(f"rotation_6d_{i}" for i in range(1, 7)),
    "axis_angle": tuple(f"axis_angle_{axis} [rad]" for axis in "xyz"),
    "quaternion_wxyz": tuple(f"quaternion_{part}" for part in "wxyz"),
    "quaternion_xyzw": tuple(f"quaternion_{part}" for part in "xyzw"),
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
    """Makes the store `out` of the store at `path`, with end-effector actions (`actions` "ee").

    The state gains the pose of each `tool` (a site or a body of `model`, `vla.envs.robot_models`), by forward
    kinematics of the measured joints. The action is the pose that the commanded joints put it at, absolute, and what
    does not move it (the gripper) as it was. Without `keep_joints` the state loses the joints, so that a policy can
    drive other arms too. `rotation` is the representation; `joints` and `units` as in `vla.kinematics.joint_map`.
    Images are copied as they are coded.

    Raises InputError, before anything is written, for what is named and not there, and for components that are not
    joints in known units.
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
            raise InputError(f"{path} does not declare what its actions are: vla data migrate {path}")
        about = tool_kinematics(source.embodiment, model, frames, representation, joints, units)
        derived = _Derived(source.embodiment, about, representation, keep_joints)
        episodes = range(len(source))
        # Twice, so that a store of any size fits: the range of the poses stands in its head.
        found = (derived.rows(source, index)[1] for index in tqdm(episodes, desc="kinematics", leave=False))
        body = derived.within([(action.min(axis=0), action.max(axis=0)) for action in found])
        provenance = {**source.provenance, "derived": {"actions": actions, "model": model, "tool": list(frames)}}
        with appearing(out) as new, EpisodeStore.create(new, body, source.codec, provenance) as target:
            for index in tqdm(episodes, desc=f"copy {path}", unit="episode", leave=False):
                state, action = derived.rows(source, index)
                _append(target, source, index, {"state": state, "action": action})
        chunks = any("chunks" in record.streams for record in source.records)
    print(f"{out}: {len(episodes)} episodes with the pose of {', '.join(frames)} as {representation}, by {model}")
    print("joints: " + ", ".join(f"{joint.component} is {joint.joint}" for joint in about.joints))
    print(f"actions as they were: {', '.join(derived.kept) or 'none'}")
    if chunks:
        print("recorded chunks are left out: they are of the joints")


def tool_kinematics(
    body: Embodiment,
    model: str,
    frames: Sequence[str],
    representation: str,
    joints: Mapping[str, Any] | None,
    units: str | None,
) -> ToolKinematics:
    from vla.envs.robot_models import load_robot_model

    if not frames or len(set(frames)) < len(frames):
        raise InputError("tool names one frame of the model, or several different ones")
    mjcf = extract_chain(load_robot_model(model), frames)
    unit = "deg" if representation.endswith("_deg") else "rad"
    parts = PARTS.get(representation, tuple(f"{representation}_{i} [{unit}]" for i in range(1, 4)))
    tools = tuple(
        Tool(
            frame,
            component_names(frame, ("x [m]", "y [m]", "z [m]"), len(frames) == 1),
            component_names(frame, parts, len(frames) == 1),
        )
        for frame in frames
    )
    return ToolKinematics(model, mjcf, tools, match_joints(body, chain_joints(mjcf), joints, units))


def _append(target: EpisodeStore, source: EpisodeStore, index: int, rows: Mapping[str, np.ndarray]) -> None:
    """Adds episode `index` of `source` with other `rows`: its images as they are coded, and without recorded chunks,
    which are of the other actions. Raises InputError when the episode is damaged."""
    # An episode of another embodiment is nothing that a store's own methods copy.
    record = source.records[index]
    streams = tuple(name for name in record.streams if name != "chunks")
    content = source.stored(index) | {kind: [np.asarray(values, "<f8")] for kind, values in rows.items()}
    content.pop("chunks", None)
    shapes = {name: shape for name, shape in source.shapes.items() if name in content and name not in rows}
    target.append_stored(content, replace(record, streams=streams), shapes)


class _Derived:
    """The embodiment with tool poses, and its states and actions."""

    def __init__(self, body: Embodiment, about: ToolKinematics, representation: str, keep_joints: bool) -> None:
        from vla.kinematics.arm import ArmKinematics

        self._arm = ArmKinematics(body, about)
        moved = {joint.component for joint in about.joints}
        pose = tuple(name for tool in about.tools for name in (*tool.position, *tool.rotation))
        if taken := set(pose) & {*body.state, *body.action}:
            raise InputError(f"embodiment {body.name} has a component {min(taken)} already")
        self.kept = tuple(name for name in body.action if name not in moved)
        self._at = [body.action.index(name) for name in self.kept]
        measuring = {body.measured_by[body.action.index(name)] for name in moved}
        self._seen = [i for i in range(len(body.state)) if keep_joints or i not in measuring]
        state, action = (*(body.state[i] for i in self._seen), *pose), (*pose, *self.kept)

        def of(values: Sequence[Any], pose_value: Any) -> tuple[Any, ...]:
            return (*[pose_value] * len(pose), *(values[i] for i in self._at))

        rotations = [
            Rotation(
                tuple(action.index(name) for name in tool.rotation),
                representation,
                tuple(state.index(name) for name in tool.rotation),
            )
            for tool in about.tools
        ]
        for rotation in body.rotations:
            if {body.action[i] for i in rotation.action} <= set(self.kept):
                kept = tuple(action.index(body.action[i]) for i in rotation.action)
                seen = tuple(state.index(body.state[i]) for i in rotation.state)
                rotations.append(replace(rotation, action=kept, state=seen))
        self._body = Embodiment(
            name=body.name,
            cameras=body.cameras,
            state=state,
            action=action,
            action_low=of(body.action_low, 0.0),
            action_high=of(body.action_high, 0.0),
            control_hz=body.control_hz,
            action_mode=of(body.action_mode, "absolute"),
            action_state=(*pose, *(body.action_state[i] for i in self._at)),
            action_turn=of(body.action_turn, 0.0),
            grippers=tuple(name for name in body.grippers if name in self.kept),
            rotations=tuple(rotations),
            kinematics=about,
        )
        self._poses = [ToolPose.of(self._body, tool) for tool in about.tools]

    def rows(self, source: EpisodeStore, index: int) -> tuple[Float[np.ndarray, "t s"], Float[np.ndarray, "t a"]]:
        """State and action of an episode. Raises InputError for values that are not finite."""
        frames = source.records[index].frames
        state, action = (np.asarray(source.rows(kind)[frames]) for kind in ("state", "action"))
        for kind, values in (("state", state), ("action", action)):
            check_finite(values, getattr(source.embodiment, kind), f"{kind} of episode {index} of {source.path}")
        measured, commanded = self._arm.measured(state), self._arm.commanded(action)
        states = np.empty((len(state), len(self._body.state)))
        states[:, : len(self._seen)] = state[:, self._seen]
        actions = np.empty((len(action), len(self._body.action)))
        actions[:, len(actions[0]) - len(self._at) :] = action[:, self._at]
        for i, pose in enumerate(self._poses):
            pose.write_state(states, measured[:, i])
            pose.write_actions(actions, commanded[:, i], measured[0, i])
        return states, actions

    def within(self, ranges: Sequence[tuple[Float[np.ndarray, "a"], Float[np.ndarray, "a"]]]) -> Embodiment:
        """The embodiment with the extremes of the poses as limits; what was there keeps its own."""
        low, high = np.min([low for low, _ in ranges], axis=0), np.max([high for _, high in ranges], axis=0)
        poses = len(low) - len(self.kept)
        return replace(
            self._body,
            action_low=(*low[:poses].tolist(), *self._body.action_low[poses:]),
            action_high=(*high[:poses].tolist(), *self._body.action_high[poses:]),
        )
