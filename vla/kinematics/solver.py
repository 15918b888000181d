"""Forward and inverse kinematics of a chain of joints, by MuJoCo and mink.

A pose is a row of seven: x, y, z [m] and the quaternion w, x, y, z, in the model's world.

Inverse kinematics is a sequence of quadratic programs on the tool's Jacobian (Zakka, mink 1.2, `FrameTask`): the
position counts, the orientation as far as the joints allow both, damped where the arm is near a singularity.
"""

from __future__ import annotations

from collections.abc import Sequence

import mink
import numpy as np
import qpsolvers
from jaxtyping import Float

from vla.common.mujoco_gl import mujoco

POSITION_COST, ORIENTATION_COST = 1.0, 0.02
"""Of 1 m and of 1 rad."""
START_DAMPING, LEAST_DAMPING = 1e-5, 1e-10
EASE, TIGHTEN = 10.0, 10.0
NEGLIGIBLE = 1e-6
ITERATIONS, REFINEMENTS = 30, 8
TOLERANCE = 1e-8
"""[rad, m] of a joint's last movement."""
CLOSE, ALIGNED = 1e-7, 1e-5
"""[m] and [rad] from which a position and an orientation are the target's."""
RESTARTS = 20


class _Box(mink.Limit):
    """Bounds of the joints, which hold for a whole solution and not for each of its iterations."""

    low: Float[np.ndarray, "j"]
    high: Float[np.ndarray, "j"]

    def compute_qp_inequalities(self, configuration: mink.Configuration, dt: float) -> mink.Constraint:
        eye = np.eye(len(self.low))
        room = np.concatenate([self.high - configuration.q, configuration.q - self.low])
        return mink.Constraint(np.concatenate([eye, -eye]), room)


class KinematicSolver:
    """Of the joints in MJCF that `vla.common.kinematic_chain.extract_chain` gave, for its tools `frames`, in their
    order.

    Joints are in the order of the chain. Owns scratch data: one thread at a time may use it.
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
        """The tools' poses with these joints [rad, m]."""
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
        """The joints, no more than `step` from `joints` and between `low` and `high` (default: the model's ranges),
        that bring the tools nearest to `poses`: to their positions, and of what allows those, to their orientations.

        It is the solution on the way from `joints`. Where that way ends in a local minimum, `search` tries other
        starts, unless `step` bounds it; without it a path has no jumps.
        """
        low, high = self.low if low is None else low, self.high if high is None else high
        start = np.clip(joints, low, high)
        self._box.low, self._box.high = np.maximum(low, start - step), np.minimum(high, start + step)
        for task, pose in zip(self._tasks, poses, strict=True):
            task.set_target(mink.SE3(np.roll(pose, 4)))
        best, found = self._descend(start)
        if search and np.isinf(step).all():
            starts = np.random.default_rng(0)
            ends = np.where(np.isfinite(low), low, -np.pi), np.where(np.isfinite(high), high, np.pi)
            for _ in range(RESTARTS):
                if best == (0.0, 0.0):
                    break
                best, found = min((best, found), self._descend(starts.uniform(*ends)), key=lambda each: each[0])
        return found

    def _descend(self, start: Float[np.ndarray, "j"]) -> tuple[tuple[float, float], Float[np.ndarray, "j"]]:
        """How far from position [m] and orientation [rad] the solution from `start` remains, 0 for met, and it."""
        self._configuration.update(start)
        self._minimize(ORIENTATION_COST, ITERATIONS)
        errors, joints = self._errors(), self._configuration.q.copy()
        if errors[0]:
            # Where both cannot be met the least squares lie in between, and the position comes first. One that is out
            # of reach is left there: to come nearer the arm would swing for nothing.
            self._minimize(0.0, REFINEMENTS)
            if not (refined := self._errors())[0]:
                return refined, self._configuration.q.copy()
        return errors, joints

    def _errors(self) -> tuple[float, float]:
        errors = [task.compute_error(self._configuration) for task in self._tasks]
        apart = max(float(np.linalg.norm(error[:3])) for error in errors)
        turned = max(float(np.linalg.norm(error[3:])) for error in errors)
        return apart if apart > CLOSE else 0.0, turned if turned > ALIGNED else 0.0

    def _minimize(self, orientation_cost: float, iterations: int) -> None:
        """Levenberg and Marquardt's method: a step that does not bring the tools nearer is tried again, shorter.

        Without that, joints jump to and fro where the arm is stretched out or cannot turn the tool as it should.
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
