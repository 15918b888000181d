"""Forward and inverse kinematics between an embodiment's joint components and its tool poses."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.common.kinematic_chain import ToolKinematics
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.solver import KinematicSolver


class ArmKinematics:
    """Converts between the joint components of `body`, in their units, and tool poses (t, 7).

    Raises:
        InputError: The body lacks a joint of `kinematics`.
    """

    def __init__(self, body: Embodiment, kinematics: ToolKinematics) -> None:
        components = [joint.component for joint in kinematics.joints]
        if lacking := [name for name in components if name not in body.action]:
            raise InputError(
                f"the joint {lacking[0]} moves the tool, and {body.name} has no such action: {', '.join(body.action)}; "
                "set the model and joints of this arm: kinematics.model=…"
            )
        self.at = [body.action.index(name) for name in components]
        self._solver = KinematicSolver(kinematics.mjcf, [tool.frame for tool in kinematics.tools])
        order = [joint.joint for joint in kinematics.joints]
        if order != list(self._solver.joints):
            raise InputError(f"the joints {', '.join(order)} are not those of the model: {self._solver.joints}")
        measured = [body.measured_by[i] for i in self.at]
        for name, index in zip(components, measured, strict=True):
            if index is None:
                raise InputError(f"no state component measures {name}: the pose of the tool is unknown")
        self._measured = [index for index in measured if index is not None]
        self._scale = np.array([joint.scale for joint in kinematics.joints])
        self._offset = np.array([joint.offset for joint in kinematics.joints])
        ends = np.stack([self._joints(np.array(end)[self.at]) for end in (body.action_low, body.action_high)])
        self._low, self._high = ends.min(axis=0), ends.max(axis=0)

    def measured(self, state: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n t 7"]:
        """The tool poses at the measured joints."""
        return self._forward(state[:, self._measured])

    def commanded(self, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n t 7"]:
        """The tool poses at the joint targets."""
        return self._forward(action[:, self.at])

    def _forward(self, values: Float[np.ndarray, "n j"]) -> Float[np.ndarray, "n t 7"]:
        return np.stack([self._solver.forward(joints) for joints in self._joints(values)])

    def follow(
        self,
        poses: Float[np.ndarray, "n t 7"],
        start: Float[np.ndarray, "j"],
        step: Float[np.ndarray, "j"],
        first: Float[np.ndarray, "j"] | None = None,
    ) -> Float[np.ndarray, "n j"]:
        """Joint targets that move the tools through `poses`, within the limits of the body.

        Args:
            poses: Consecutive tool poses.
            start: Joints at the start, in the body's units.
            step: Largest change of each joint between consecutive targets.
            first: Largest change from `start` to the first target; None: `step`.

        Returns:
            One row of targets per pose, in the body's units.
        """
        joints, targets = self._joints(start), []
        reach = np.abs((step if first is None else first) * self._scale)
        for pose in poses:
            joints = self._solver.inverse(pose, joints, step=reach, low=self._low, high=self._high, search=False)
            reach = np.abs(step * self._scale)
            targets.append((joints - self._offset) / self._scale)
        return np.array(targets).reshape(len(poses), len(self.at))

    def present(self, state: Float[np.ndarray, "s"]) -> Float[np.ndarray, "j"]:
        """The measured joints, in the body's units."""
        return state[self._measured]

    def _joints(self, values: Float[np.ndarray, "*n j"]) -> Float[np.ndarray, "*n j"]:
        return values * self._scale + self._offset
