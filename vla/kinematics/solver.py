"""Forward and inverse kinematics of a chain of joints, by MuJoCo and mink.

A pose has seven values: x, y, z [m] and the quaternion w, x, y, z, in the world frame of the model.

Inverse kinematics solves a sequence of quadratic programs on the tool's Jacobian (Zakka, mink 1.2, `FrameTask`).
Position has priority over orientation, and the solution is damped near singularities.
"""

from __future__ import annotations

from collections.abc import Sequence

import mink
import numpy as np
import qpsolvers
from jaxtyping import Float

from vla.common.mujoco_gl import mujoco

POSITION_COST, ORIENTATION_COST = 1.0, 0.02
"""Cost of an error of 1 m and of 1 rad."""
START_DAMPING, LEAST_DAMPING = 1e-5, 1e-10
EASE, TIGHTEN = 10.0, 10.0
NEGLIGIBLE = 1e-6
ITERATIONS, REFINEMENTS = 30, 8
TOLERANCE = 1e-8
"""Largest joint step at convergence [rad, m]."""
CLOSE, ALIGNED = 1e-7, 1e-5
"""Errors [m] and [rad] below which a position and an orientation count as reached."""
RESTARTS = 20


class _Box(mink.Limit):
    """Joint bounds for the complete solution rather than for a single iteration."""

    low: Float[np.ndarray, "j"]
    high: Float[np.ndarray, "j"]

    def compute_qp_inequalities(self, configuration: mink.Configuration, dt: float) -> mink.Constraint:
        eye = np.eye(len(self.low))
        room = np.concatenate([self.high - configuration.q, configuration.q - self.low])
        return mink.Constraint(np.concatenate([eye, -eye]), room)


class KinematicSolver:
    """Forward and inverse kinematics of one chain; joints are in the order of the chain.

    Not thread-safe: it contains working memory.

    Args:
        mjcf: Model from `vla.common.kinematic_chain.extract_chain`.
        frames: Names of the tools, which define the order of poses.
    """

    def __init__(self, mjcf: str, frames: Sequence[str]) -> None:
        model = mujoco.MjModel.from_xml_string(mjcf)
        self.joints = tuple(model.joint(i).name for i in range(model.njnt))
        limited = model.jnt_limited.astype(bool)
        self.low = np.where(limited, model.jnt_range[:, 0], -np.inf)
        self.high = np.where(limited, model.jnt_range[:, 1], np.inf)
        self._configuration, self._box = mink.Configuration(model), _Box()
        self._sites = [model.site(frame).id for frame in frames]
        self._tasks = [mink.FrameTask(frame, "site", POSITION_COST, 0.0) for frame in frames]

    def forward(self, joints: Float[np.ndarray, "j"]) -> Float[np.ndarray, "t 7"]:
        """The tool poses at these joints [rad, m]."""
        data = self._configuration.data
        data.qpos[:] = joints
        mujoco.mj_kinematics(self._configuration.model, data)
        poses = np.empty((len(self._sites), 7))
        for pose, site in zip(poses, self._sites, strict=True):
            pose[:3] = data.site_xpos[site]
            mujoco.mju_mat2Quat(pose[3:], data.site_xmat[site])
        return poses

    def inverse(
        self,
        poses: Float[np.ndarray, "t 7"],
        joints: Float[np.ndarray, "j"],
        *,
        step: Float[np.ndarray, "j"] | float = np.inf,
        low: Float[np.ndarray, "j"] | None = None,
        high: Float[np.ndarray, "j"] | None = None,
        search: bool = True,
    ) -> Float[np.ndarray, "j"]:
        """The joints that bring the tools closest to `poses`, first in position, then in orientation.

        The solution is found by descent from `joints`.

        Args:
            poses: Target pose of each tool.
            joints: Joints at the start [rad, m].
            step: Largest change of each joint.
            low: Lower limits of the joints; None: those of the model.
            high: Upper limits of the joints; None: those of the model.
            search: Tries other starts if the descent ends in a local minimum and `step` is infinite. Without it, a
                trajectory has no jumps.
        """
        low, high = self.low if low is None else low, self.high if high is None else high
        start = np.clip(joints, low, high)
        self._box.low, self._box.high = np.maximum(low, start - step), np.minimum(high, start + step)
        for task, pose in zip(self._tasks, poses, strict=True):
            task.set_target(mink.SE3(np.roll(pose, 4)))
        best, solution = self._descend(start)
        if search and np.isinf(step).all():
            rng = np.random.default_rng(0)
            ends = np.where(np.isfinite(low), low, -np.pi), np.where(np.isfinite(high), high, np.pi)
            for _ in range(RESTARTS):
                if best == (0.0, 0.0):
                    break
                candidates = (best, solution), self._descend(rng.uniform(*ends))
                best, solution = min(candidates, key=lambda candidate: candidate[0])
        return solution

    def _descend(self, start: Float[np.ndarray, "j"]) -> tuple[tuple[float, float], Float[np.ndarray, "j"]]:
        """The remaining errors of position [m] and orientation [rad], 0 if reached, and the solution from `start`."""
        self._configuration.update(start)
        self._minimize(ORIENTATION_COST, ITERATIONS)
        errors, joints = self._errors(), self._configuration.q.copy()
        if errors[0]:
            # If both cannot be reached, the least-squares solution compromises: refine the position alone. The result
            # is used only if it reaches the position, otherwise the arm would swing without need.
            self._minimize(0.0, REFINEMENTS)
            if not (refined := self._errors())[0]:
                return refined, self._configuration.q.copy()
        return errors, joints

    def _errors(self) -> tuple[float, float]:
        errors = [task.compute_error(self._configuration) for task in self._tasks]
        distance = max(float(np.linalg.norm(error[:3])) for error in errors)
        angle = max(float(np.linalg.norm(error[3:])) for error in errors)
        return distance if distance > CLOSE else 0.0, angle if angle > ALIGNED else 0.0

    def _minimize(self, orientation_cost: float, iterations: int) -> None:
        """Minimises the errors by the Levenberg-Marquardt method: a step that does not reduce the cost is shortened.

        Without this, joints oscillate if the arm is stretched out or cannot reach the orientation.
        """
        for task in self._tasks:
            task.set_orientation_cost(orientation_cost)
        damping, cost = START_DAMPING, self._cost()
        for _ in range(iterations):
            before = self._configuration.q.copy()
            problem = mink.build_ik(self._configuration, self._tasks, 1.0, damping, [self._box])
            solution = qpsolvers.solve_problem(problem, solver="daqp")
            if not solution.found or solution.x is None:
                return
            self._configuration.update(np.clip(before + solution.x, self._box.low, self._box.high))
            if (after := self._cost()) < cost:
                gained, cost, damping = cost - after, after, max(damping / EASE, LEAST_DAMPING)
                if np.abs(solution.x).max() < TOLERANCE or gained < NEGLIGIBLE * after:
                    return
            else:
                self._configuration.update(before)
                damping = damping * TIGHTEN
                if np.abs(solution.x).max() < TOLERANCE:
                    return

    def _cost(self) -> float:
        errors = (task.cost * task.compute_error(self._configuration) for task in self._tasks)
        return sum(float(error @ error) for error in errors)
