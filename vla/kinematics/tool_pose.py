"""Writes tool poses to state and action components, and reads them back.

A pose has seven values: x, y, z [m] and the quaternion w, x, y, z (`vla.kinematics.solver`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.common.kinematic_chain import Tool
from vla.common.rotations import decode, encode
from vla.embodiment import Embodiment, Rotation
from vla.errors import InputError


@dataclass(frozen=True)
class ToolPose:
    """The indices of one tool's pose in the states and actions of `body`."""

    body: Embodiment
    position: tuple[int, ...]
    """Action components of the position."""
    measured: tuple[int, ...]
    """State components of the position; empty if the state does not include it."""
    rotation: Rotation

    @classmethod
    def of(cls, body: Embodiment, tool: Tool) -> ToolPose:
        """The indices of `tool`. Raises InputError if the action does not have its pose, absolute or as deltas."""
        names = (*tool.position, *tool.rotation)
        if lacking := [name for name in names if name not in body.action]:
            raise InputError(
                f"embodiment {body.name} has no action component {lacking[0]}, of the pose of {tool.frame}"
            )
        position = tuple(body.action.index(name) for name in tool.position)
        orientation = tuple(body.action.index(name) for name in tool.rotation)
        rotation = next((rotation for rotation in body.rotations if rotation.action == orientation), None)
        if rotation is None:
            raise InputError(f"embodiment {body.name}: {', '.join(tool.rotation)} are no rotation")
        modes = {body.action_mode[i] for i in (*position, *orientation)}
        if len(modes) > 1 or not modes <= {"absolute", "delta"}:
            raise InputError(f"embodiment {body.name}: the pose of {tool.frame} is neither absolute nor delta: {modes}")
        measured = tuple(index for index in (body.measured_by[i] for i in position) if index is not None)
        return cls(body, position, measured if len(measured) == len(position) else (), rotation)

    @property
    def action(self) -> tuple[int, ...]:
        """Action components of position and rotation."""
        return (*self.position, *self.rotation.action)

    @property
    def state(self) -> tuple[int, ...]:
        """State components of position and rotation."""
        return (*self.measured, *self.rotation.state)

    @property
    def absolute(self) -> bool:
        """Whether actions are absolute poses rather than deltas."""
        return bool(self.body.is_position_action[self.position[0]])

    def write_state(self, state: Float[np.ndarray, "t s"], poses: Float[np.ndarray, "t 7"]) -> None:
        """Writes measured poses into the rows of `state`."""
        if self.measured:
            state[:, list(self.measured)] = poses[:, :3]
        if self.rotation.state:
            state[:, list(self.rotation.state)] = encode(_rotation(poses), self.rotation.state_representation)

    def write_actions(
        self, actions: Float[np.ndarray, "t a"], poses: Float[np.ndarray, "t 7"], now: Float[np.ndarray, "7"]
    ) -> None:
        """Writes the actions that move the tool from the present pose `now` through `poses`."""
        turns, positions = _rotation(poses), poses[:, :3]
        if not self.absolute:
            before = np.concatenate([now[None], poses[:-1]])
            positions = positions - before[:, :3]
            inverse = _rotation(before).inv()
            turns = turns * inverse if self.rotation.frame == "base" else inverse * turns
        actions[:, list(self.position)] = positions
        actions[:, list(self.rotation.action)] = encode(turns, self.rotation.representation)

    def read_actions(self, actions: Float[np.ndarray, "t a"], now: Float[np.ndarray, "7"]) -> Float[np.ndarray, "t 7"]:
        """The poses that the actions command, for a tool at the present pose `now`."""
        turns = decode(actions[:, list(self.rotation.action)], self.rotation.representation)
        positions = actions[:, list(self.position)]
        if self.absolute:
            return np.concatenate([positions, np.roll(turns.as_quat(), 1, axis=1)], axis=1)
        poses = np.empty((len(actions), 7))
        orientation = _rotation(now[None])
        for i, step in enumerate(turns):
            orientation = step * orientation if self.rotation.frame == "base" else orientation * step
            poses[i, 3:] = np.roll(orientation.as_quat()[0], 1)
        poses[:, :3] = now[:3] + np.cumsum(positions, axis=0)
        return poses


def component_names(frame: str, components: Sequence[str], single: bool) -> tuple[str, ...]:
    """The component names of a pose, prefixed by "tool" for a single tool, otherwise by the tool's name."""
    return tuple(f"{'tool' if single else frame}_{component}" for component in components)


def _rotation(poses: Float[np.ndarray, "t 7"]):  # type: ignore[no-untyped-def]
    return decode(poses[:, 3:], "quaternion_wxyz")
