"""Cartesian jogging of a SO-101: small steps of the fingertips and the jaws, from whatever pose the arm is in.

Each jog is a step of differential inverse kinematics (`vla.kinematics.solver`) from the present joint targets. Of the
five joints wrist_roll turns the jaws, and the other four place the fingertips; the pitch of the fingers, which is left
over, goes slowly to the one that suits the place (`comfortable_pitch`), as far as the joints allow.
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
"""[m]. Jogs keep the fingertips this far above the table; a place that the arm misses by more than this is out of
reach."""
PITCH_STEP, JOINT_STEP = 0.02, 0.3
"""[rad] that the pitch goes towards the comfortable one, and that a joint's target moves, in one jog at most."""
LEAD, TURN_LEAD, JOINT_LEAD = 0.06, 0.6, 0.3
"""[m] that the target of the fingertips, and [rad] that the one of the jaws may be ahead of them, and [rad] that a
command may be ahead of a joint: less than what the control loop takes for a stall."""
BLOCKED, TURN_BLOCKED, PATIENCE = 0.008, 0.08, 0.5
"""[m], [rad], [s]. An arm that stands still so far from its target for so long is blocked."""
STILL = 0.005
"""[rad] that a joint which stands still seems to move from one step to the next, at most: three encoder steps."""
NEAR = 0.05
"""[rad] from its end at which the gripper is open, or closed."""
AXES = (("forward", "back"), ("left", "right"), ("up", "down"))
ROLL = JOINTS.index("wrist_roll")


def fingertip_solver() -> KinematicSolver:
    """Kinematics of the SO-101's five arm joints and its fingertips, in the frame of its base."""
    from vla.kinematics.solver import KinematicSolver

    return KinematicSolver(extract_chain(arm_spec().compile(), (TIP_SITE,)), (TIP_SITE,))


class CartesianJog:
    """Jogs the SO-101 `body` from where its joints are measured, at `joints` [rad].

    What is kept is the target, not what is measured: steps add up, whatever the arm's lag and sag. `report` gets the
    reason why a jog does not move the arm: one line when it changes, or comes again after a second without it.
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
        self._still: Int[np.ndarray, "6"] = np.zeros(len(joints), int)  # steps for which each joint has not moved
        self._sag = np.zeros(len(self.joints))
        self._reason, self._steps_since_reason = "", 0

    def act(self, jog: Jog, measured: Float[np.ndarray, "6"]) -> Float[np.ndarray, "6"]:
        """Absolute joint targets [rad] after `jog`, of an arm whose joints are now `measured` [rad]."""
        self._still = np.where(np.abs(measured - self._measured) > STILL, 0, self._still + 1)
        self._measured = measured.copy()
        self._tell(self._retreat() or self._move(jog), self._grip(jog.close))
        step = np.append(self.joints, self._gripper) - measured
        # One scale for all five joints keeps the path straight in joint space.
        step[:-1] *= min(1.0, JOINT_LEAD / max(float(np.abs(step[:-1]).max()), 1e-9))
        step[-1] = np.clip(step[-1], -GRIPPER_STEP, GRIPPER_STEP)
        return np.clip(measured + step, self._low, self._high)

    def _tell(self, *reasons: str) -> None:
        self._steps_since_reason += 1
        if reason := "; ".join(filter(None, reasons)):
            if reason != self._reason or self._steps_since_reason > 2 * self._patience:
                self._report(reason)
            self._reason, self._steps_since_reason = reason, 0

    def _retreat(self) -> str:
        """Takes the target back to an arm that is blocked, so that its servos do not press on."""
        if self._still[:-1].min() != self._patience:
            return ""
        reached = np.clip(self._measured[:-1] + self._sag, self._low[:-1], self._high[:-1])
        short, unturned = self._ahead(self.position, self.joints[ROLL], reached)
        if short < BLOCKED and unturned < TURN_BLOCKED:
            return ""
        self.joints, self.position = reached, self._tip(reached)
        return "the arm is blocked: its target is taken back to where it is"

    def _move(self, jog: Jog) -> str:
        """Takes the target on by `jog`; why it cannot, in part or at all."""
        if not any(jog.delta) and not jog.turn:
            return ""
        reasons = []
        position = self.position + jog.delta
        # Fingertips that are lower come up to the lowest with the first jog that does not lower them.
        floor = min(LOWEST, self.position[2] + STEP * (jog.delta[2] >= 0))
        if position[2] < floor:
            position[2] = floor
            if jog.delta[2] < 0:
                reasons.append(f"the fingertips do not go below {LOWEST * 100:g} cm above the table")
        roll = np.clip(self.joints[ROLL] + jog.turn, self._low[ROLL], self._high[ROLL])
        if jog.turn and abs(roll - self.joints[ROLL]) < abs(jog.turn) / 2:
            reasons.append(f"the jaws do not turn further: {JOINTS[ROLL]} is at its limit")
        if (position != self.position).any() or roll != self.joints[ROLL]:
            reasons.append(self._go(position, float(roll), jog))
        return "; ".join(filter(None, reasons))

    def _go(self, position: Float[np.ndarray, "3"], roll: float, jog: Jog) -> str:
        joints = self._solve(position, roll)
        if np.linalg.norm(self._tip(joints) - position) > OUT_OF_REACH:
            return f"the arm does not {_motion(jog)}: {self._obstacle(joints)}"
        lead, turn_lead = self._ahead(position, roll, self._measured[:-1])
        before, turned_before = self._ahead(self.position, self.joints[ROLL], self._measured[:-1])
        if lead > max(LEAD, before) or turn_lead > max(TURN_LEAD, turned_before):
            behind = (
                f"{LEAD * 100:g} cm or {TURN_LEAD:g} rad behind its target, it is blocked or too slow for these jogs"
            )
            return f"the arm does not {_motion(jog)}: {behind}"
        if self._still[:-1].min() >= self._patience:  # what the servos leave, at rest, between target and arm
            self._sag = self.joints - self._measured[:-1]
            self._still[:-1] = 0
        self.joints, self.position = joints, position
        return ""

    def _solve(self, position: Float[np.ndarray, "3"], roll: float) -> Float[np.ndarray, "5"]:
        """Joint targets close to the present ones that bring the fingertips nearest to `position`."""
        pitch = self.joints[1:4].sum()  # of the three joints in the arm's plane
        pitch += np.clip(comfortable_pitch(position) - pitch, -PITCH_STEP, PITCH_STEP)
        pose = self._solver.forward(np.array([self.joints[0], pitch, 0.0, 0.0, roll]))
        pose[0, :3] = position
        low, high = self._low[:-1].copy(), self._high[:-1].copy()
        low[ROLL] = high[ROLL] = roll
        return self._solver.inverse(pose, self.joints, step=JOINT_STEP, low=low, high=high, search=False)

    def _ahead(
        self, position: Float[np.ndarray, "3"], roll: float, joints: Float[np.ndarray, "5"]
    ) -> tuple[float, float]:
        """How far [m] and [rad] a target of fingertips and jaws is from an arm with these joints."""
        return float(np.linalg.norm(position - self._tip(joints))), abs(roll - float(joints[ROLL]))

    def _obstacle(self, joints: Float[np.ndarray, "5"]) -> str:
        """Why `joints`, which came nearest, are not there."""
        room = np.minimum(joints - self._low[:-1], self._high[:-1] - joints)
        if at := [name for name, left in zip(JOINTS[:ROLL], room, strict=False) if left < 1e-3]:
            return f"out of reach, {' and '.join(at)} at the limit"
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
