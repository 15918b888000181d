"""An embodiment's joints and the poses of its tools."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.common.kinematic_chain import ToolKinematics
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.solver import KinematicSolver


class ArmKinematics:
    """Between the components of `body` that are joints, in their units, and tool poses (t, 7), by `about`.

    Raises InputError when the body lacks a joint of it.
    """

    def __init__(self, body: Embodiment, about: ToolKinematics) -> None:
        components = [joint.component for joint in about.joints]
        if lacking := [name for name in components if name not in body.action]:
            raise InputError(
                f"the joint {lacking[0]} moves the tool, and {body.name} has no such action: {', '.join(body.action)}; "
                "name its own model and joints: kinematics.model=…"
            )
        self.at = [body.action.index(name) for name in components]
        self._solver = KinematicSolver(about.mjcf, [tool.frame for tool in about.tools])
        order = [joint.joint for joint in about.joints]
        if order != list(self._solver.joints):
            raise InputError(f"the joints {', '.join(order)} are not those of the model: {self._solver.joints}")
        measured = [body.measured_by[i] for i in self.at]
        for name, at in zip(components, measured, strict=True):
            if at is None:
                raise InputError(f"no state component measures {name}: the pose of the tool is not known")
        self._measured = [at for at in measured if at is not None]
        self._scale = np.array([joint.scale for joint in about.joints])
        self._offset = np.array([joint.offset for joint in about.joints])
        ends = np.stack([self._joints(np.array(end)[self.at]) for end in (body.action_low, body.action_high)])
        self._low, self._high = ends.min(axis=0), ends.max(axis=0)

    def measured(self, state: Float[np.ndarray, "n s"]) -> Float[np.ndarray, "n t 7"]:
        """The tools' poses in these states."""
        return self._forward(state[:, self._measured])

    def commanded(self, action: Float[np.ndarray, "n a"]) -> Float[np.ndarray, "n t 7"]:
        """The poses to which these joint targets bring the tools."""
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
        """Joint targets that take the tools through `poses`, one after another, from joints at `start`.

        All in the body's units, within its limits, and no joint by more than `step` from one target to the next, or by
        `first` from `start` to the first.
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
