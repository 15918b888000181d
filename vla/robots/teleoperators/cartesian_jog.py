"""Cartesian jogging of a SO-101: small steps of the fingertips and the jaws, from any pose.

Each jog is a step of differential inverse kinematics (`vla.kinematics.solver`) from the current joint targets. Of the
five arm joints, wrist_roll turns the jaws and the other four position the fingertips. The remaining degree of freedom,
the pitch of the fingers, moves slowly to a suitable value for the position (`comfortable_pitch`), within joint limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from vla.common.kinematic_chain import extract_chain
from vla.embodiment import Embodiment
from vla.envs.arm import JOINTS, TIP_SITE, arm_spec
from vla.envs.primitives import CLOSED, OPEN
from vla.envs.scripted_expert import GRIPPER_STEP, comfortable_pitch
from vla.robots.teleoperators.teleoperator import STEP, Jog

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver

LOWEST, OUT_OF_REACH = 0.01, 0.005
"""Lowest height of the fingertips above the table, and position error above which a target is out of reach [m]."""
PITCH_STEP, JOINT_STEP = 0.02, 0.3
"""Largest change per jog of the pitch and of a joint's target [rad]."""
LEAD, TURN_LEAD, JOINT_LEAD = 0.06, 0.6, 0.3
"""Largest lead of the target of the fingertips [m], of the jaws [rad], and of a command over its joint [rad]; below the
stall threshold of the control loop."""
BLOCKED, TURN_BLOCKED, PATIENCE = 0.008, 0.08, 0.5
"""An arm at rest is blocked if it is this far from its target, in position [m] or turn [rad], for this time [s]."""
STILL = 0.005
"""Largest apparent motion per step of a joint at rest [rad]: three encoder steps."""
NEAR = 0.05
"""Distance from its end position at which the gripper counts as open or closed [rad]."""
AXES = (("forward", "back"), ("left", "right"), ("up", "down"))
ROLL = JOINTS.index("wrist_roll")


def fingertip_solver() -> KinematicSolver:
    """The kinematic solver for the fingertips of the SO-101 with five arm joints, in the frame of its base."""
    from vla.kinematics.solver import KinematicSolver

    return KinematicSolver(extract_chain(arm_spec().compile(), (TIP_SITE,)), (TIP_SITE,))


class CartesianJog:
    """Jogs a SO-101. Jogs move the target and not the measured pose, so that lag and sag do not accumulate.

    Args:
        solver: The solver of `fingertip_solver`.
        body: The embodiment.
        joints: The measured joints [rad] at the start.
        report: Called with the reason why a jog does not move the arm: when it changes, or recurs after a second.
    """

    def __init__(
        self,
        solver: KinematicSolver,
        body: Embodiment,
        joints: Float[np.ndarray, "6"],
        report: Callable[[str], None],
    ) -> None:
        self._solver, self._report = solver, report
        self._low, self._high = np.array(body.action_low), np.array(body.action_high)
        self._patience = math.ceil(PATIENCE * body.control_hz)
        self.joints: Float[np.ndarray, "5"] = np.clip(joints, self._low, self._high)[:-1]
        self.position = self._tip(self.joints)
        self._gripper = float(joints[-1])
        self._measured: Float[np.ndarray, "6"] = joints.copy()
        self._still: Int[np.ndarray, "6"] = np.zeros(len(joints), int)  # steps without motion, by joint
        self._sag = np.zeros(len(self.joints))
        self._reason, self._steps_since_reason = "", 0

    def act(self, jog: Jog, measured: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
        """Applies a jog.

        Args:
            jog: The jog.
            measured: The measured joints [rad].

        Returns:
            Absolute joint targets [rad].
        """
        self._still = np.where(np.abs(measured - self._measured) > STILL, 0, self._still + 1)
        self._measured = measured.copy()
        self._report_new(self._retreat() or self._move(jog), self._grip(jog.close))
        step = np.append(self.joints, self._gripper) - measured
        # One scale for all five joints keeps the path straight in joint space.
        step[:-1] *= min(1.0, JOINT_LEAD / max(float(np.abs(step[:-1]).max()), 1e-9))
        step[-1] = np.clip(step[-1], -GRIPPER_STEP, GRIPPER_STEP)
        return np.clip(measured + step, self._low, self._high)

    def _report_new(self, *reasons: str) -> None:
        self._steps_since_reason += 1
        if reason := "; ".join(filter(None, reasons)):
            if reason != self._reason or self._steps_since_reason > 2 * self._patience:
                self._report(reason)
            self._reason, self._steps_since_reason = reason, 0

    def _retreat(self) -> str:
        """Resets the target to the pose of a blocked arm, so that its servos stop pushing."""
        if self._still[:-1].min() != self._patience:
            return ""
        reached = np.clip(self._measured[:-1] + self._sag, self._low[:-1], self._high[:-1])
        distance, turn = self._lead(self.position, self.joints[ROLL], reached)
        if distance < BLOCKED and turn < TURN_BLOCKED:
            return ""
        self.joints, self.position = reached, self._tip(reached)
        return "the arm is blocked: its target is taken back to where it is"

    def _move(self, jog: Jog) -> str:
        """Moves the target by `jog`; returns why it cannot, in part or entirely."""
        if not any(jog.delta) and not jog.turn:
            return ""
        reasons = []
        position = self.position + jog.delta
        # Fingertips below LOWEST move up to it with the first jog that does not lower them.
        floor = min(LOWEST, self.position[2] + STEP * (jog.delta[2] >= 0))
        if position[2] < floor:
            position[2] = floor
            if jog.delta[2] < 0:
                reasons.append(f"the fingertips do not go below {LOWEST * 100:g} cm above the table")
        roll = np.clip(self.joints[ROLL] + jog.turn, self._low[ROLL], self._high[ROLL])
        if jog.turn and abs(roll - self.joints[ROLL]) < abs(jog.turn) / 2:
            reasons.append(f"the jaws do not turn further: {JOINTS[ROLL]} is at its limit")
        if (position != self.position).any() or roll != self.joints[ROLL]:
            reasons.append(self._set_target(position, float(roll), jog))
        return "; ".join(filter(None, reasons))

    def _set_target(self, position: Float[np.ndarray, "3"], roll: float, jog: Jog) -> str:
        joints = self._solve(position, roll)
        if np.linalg.norm(self._tip(joints) - position) > OUT_OF_REACH:
            return f"the arm does not {_motion(jog)}: {self._obstacle(joints)}"
        lead, turn_lead = self._lead(position, roll, self._measured[:-1])
        previous_lead, previous_turn_lead = self._lead(self.position, self.joints[ROLL], self._measured[:-1])
        if lead > max(LEAD, previous_lead) or turn_lead > max(TURN_LEAD, previous_turn_lead):
            behind = (
                f"{LEAD * 100:g} cm or {TURN_LEAD:g} rad behind its target, it is blocked or too slow for these jogs"
            )
            return f"the arm does not {_motion(jog)}: {behind}"
        if self._still[:-1].min() >= self._patience:  # steady-state error of the servos
            self._sag = self.joints - self._measured[:-1]
            self._still[:-1] = 0
        self.joints, self.position = joints, position
        return ""

    def _solve(self, position: Float[np.ndarray, "3"], roll: float) -> Float[np.ndarray, "5"]:
        """Joint targets close to the current ones, with the fingertips nearest to `position`."""
        pitch = self.joints[1:4].sum()  # of the three joints in the arm's plane
        pitch += np.clip(comfortable_pitch(position) - pitch, -PITCH_STEP, PITCH_STEP)
        pose = self._solver.forward(np.array([self.joints[0], pitch, 0.0, 0.0, roll]))
        pose[0, :3] = position
        low, high = self._low[:-1].copy(), self._high[:-1].copy()
        low[ROLL] = high[ROLL] = roll
        return self._solver.inverse(pose, self.joints, step=JOINT_STEP, low=low, high=high, search=False)

    def _lead(
        self, position: Float[np.ndarray, "3"], roll: float, joints: Float[np.ndarray, "5"]
    ) -> tuple[float, float]:
        """Distance [m] and angle [rad] of a target of fingertips and jaws from an arm with these joints."""
        return float(np.linalg.norm(position - self._tip(joints))), abs(roll - float(joints[ROLL]))

    def _obstacle(self, joints: Float[np.ndarray, "5"]) -> str:
        """Why the solution `joints` does not reach the target."""
        margin = np.minimum(joints - self._low[:-1], self._high[:-1] - joints)
        if at_limit := [name for name, left in zip(JOINTS[:ROLL], margin, strict=False) if left < 1e-3]:
            return f"out of reach, {' and '.join(at_limit)} at the limit"
        if np.abs(joints - self.joints).max() > JOINT_STEP - 1e-6:
            return "too close to a singular pose, in which the joints would have to turn fast"
        return "out of reach"

    def _grip(self, close: bool | None) -> str:
        if close is None:
            return ""
        goal, measured, done = CLOSED if close else OPEN, self._measured[-1], "closed" if close else "open"
        if measured <= goal + NEAR if close else measured >= goal - NEAR:
            return f"the gripper is {done}"
        if goal != self._gripper:
            self._gripper, self._still[-1] = goal, 0
        blocked = self._still[-1] >= self._patience
        return f"the gripper does not get {done}: something holds it" if blocked else ""

    def _tip(self, joints: Float[np.ndarray, "5"]) -> Float[np.ndarray, "3"]:
        position: Float[np.ndarray, "3"] = self._solver.forward(joints)[0, :3]
        return position


def _motion(jog: Jog) -> str:
    names = [pair[step < 0] for pair, step in zip(AXES, jog.delta, strict=True) if step]
    return f"move {' and '.join(names)}" if names else "turn its jaws"
