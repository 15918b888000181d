"""Inverse kinematics of the SO-101 by damped least squares on MuJoCo's Jacobian.

Five joints bring the fingertips to a point with a pitch and a closing direction. The iteration always starts from the
same posture, rotated towards the target, so that the solution is a continuous function of the target.
Method: S. Buss, "Introduction to inverse kinematics with Jacobian transpose, pseudoinverse and damped least
squares methods" (2009).
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.common.mujoco_gl import mujoco
from vla.envs.arm import TIP_SITE

ROLL_OFFSET = 0.0487
"""The closing direction has the yaw `roll - shoulder_pan - ROLL_OFFSET` when the gripper points down [rad]."""
PAN_AXIS = (0.0388353, 0.0)
_START = np.array([0.0, 0.1, 0.1, 1.2, -np.pi / 2])
_DAMPING, _ITERATIONS, _TOLERANCE = 1e-4, 30, 1e-4


def azimuth(position: Float[np.ndarray, "_"]) -> float:
    """The direction [rad] of a point from the shoulder's vertical axis; 0 is straight ahead, positive to the left."""
    return float(np.arctan2(position[1] - PAN_AXIS[1], position[0] - PAN_AXIS[0]))


def radius(position: Float[np.ndarray, "_"]) -> float:
    """The horizontal distance [m] of a point from the shoulder's vertical axis."""
    return float(np.hypot(position[0] - PAN_AXIS[0], position[1] - PAN_AXIS[1]))


class ArmIK:
    """Inverse and forward kinematics of the arm, on separate data: the simulation is not changed."""

    def __init__(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(TIP_SITE).id
        self._low, self._high = model.jnt_range[:5, 0], model.jnt_range[:5, 1]

    def tip(self, joints: Float[np.ndarray, "6"]) -> Float[np.ndarray, "3"]:
        """Forward kinematics: the position of the fingertips [m] in the base frame for these joints [rad]."""
        self._data.qpos[:] = joints
        mujoco.mj_kinematics(self._model, self._data)
        return self._data.site_xpos[self._site].copy()

    def solve(
        self, position: Float[np.ndarray, "3"], pitch: float, closing_yaw: float
    ) -> tuple[Float[np.ndarray, "5"], float]:
        """Solves for the joints.

        Args:
            position: The target of the fingertips [m].
            pitch: The pitch of the fingers below the horizontal [rad]; pi/2 points straight down.
            closing_yaw: The direction in which the jaws close, viewed from above [rad].

        Returns:
            The joints [rad] and the remaining distance [m].
        """
        model, data = self._model, self._data
        jacobian, jac_pos = np.zeros((5, 5)), np.zeros((3, model.nv))
        jacobian[3, 1:4] = 1.0  # the pitch is the sum of the three joints in the arm's plane
        jacobian[4, [0, 4]] = -1.0, 1.0
        q = _START.copy()
        q[0] = -azimuth(position)
        error = np.zeros(5)
        for _ in range(_ITERATIONS):
            data.qpos[:5] = q
            mujoco.mj_kinematics(model, data)
            error[:3] = position - data.site_xpos[self._site]
            error[3] = pitch - q[1:4].sum()
            error[4] = closing_yaw - (q[4] - q[0] - ROLL_OFFSET)
            if np.abs(error).max() < _TOLERANCE:
                break
            mujoco.mj_comPos(model, data)
            mujoco.mj_jacSite(model, data, jac_pos, None, self._site)
            jacobian[:3] = jac_pos[:, :5]
            # Angles are weighted as lengths at a radius of 0.1 m.
            weight = np.array([1, 1, 1, 0.1, 0.1])
            weighted = jacobian * weight[:, None]
            step = weighted.T @ np.linalg.solve(weighted @ weighted.T + _DAMPING * np.eye(5), error * weight)
            q = np.clip(q + np.clip(step, -0.5, 0.5), self._low, self._high)
        return q, float(np.linalg.norm(error[:3]))
